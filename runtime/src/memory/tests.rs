//! Plans against what is really held.

use std::path::Path;
use std::sync::Arc;

use autograd::ops::Sequences;
use autograd::{Tape, Tensor, cuda};

use super::count::{LoraCounts, Weights};
use super::planner::DRIVER;
use super::*;
use crate::files::ModelFiles;
use crate::model::{Adapter, Decoder, ModelParams, ModelWeights};
use crate::request::{EngineConfig, LoraConfig, ModelSpec, Offload, Trainable, Training};

const MICRO_BATCH: usize = 40;

fn files(name: &str) -> Arc<ModelFiles> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models").join(name);
    Arc::new(ModelFiles::open(&path).expect("a fixture"))
}

fn lora() -> LoraConfig {
    LoraConfig {
        r: 4,
        alpha: 8.0,
        dropout: 0.0,
        rslora: false,
        target_modules: vec!["q_proj".to_owned(), "down_proj".to_owned()],
        rank_pattern: [("down_proj".to_owned(), 6)].into(),
        alpha_pattern: Default::default(),
        merge_for_requests: false,
        seed: 1,
    }
}

fn spec(device: Device, trainable: Option<Trainable>) -> RuntimeSpec {
    RuntimeSpec {
        deterministic: false,
        device,
        models: [Some("llama-gqa-tied"), trainable.is_some().then_some("qwen3-gqa-tied")]
            .into_iter()
            .flatten()
            .map(|name| ModelSpec::new(files(name)))
            .collect(),
        training: trainable.map(|trainable| Training {
            trainable,
            recomputed_layers: 0,
            offload: Offload::default(),
            teacher_generates: true,
        }),
        engine: EngineConfig {
            token_budget: 16,
            max_running: 4,
            max_waiting: 8,
            kv_bytes: 0,
            ..EngineConfig::for_device(device)
        },
        decode_loss: crate::train::no_losses,
    }
}

fn workload(checkpointing: Checkpointing) -> Workload {
    Workload {
        kv: KvWish::Sequences(vec![30; 4]),
        longest: 30,
        micro_batch: MICRO_BATCH,
        checkpointing,
        given_bytes: 0,
        adapters: vec![],
    }
}

fn plan(spec: &RuntimeSpec, checkpointing: Checkpointing, available: Option<u64>) -> MemoryPlan {
    MemoryPlan::of(spec, &workload(checkpointing), available).expect("planned")
}

/// What a forward pass of a micro-batch keeps when it trains `trainable`.
fn kept(spec: &RuntimeSpec, recomputed: usize) -> u64 {
    let config = &spec.student().files.config;
    let layers: Vec<usize> = (0..config.num_layers).collect();
    let source = &*spec.student().files.weights;
    let weights = ModelWeights::load(config, source, (&layers, layers.len()), Device::Cpu, &|_, _| {}).expect("loads");
    let adapter = match &spec.training.as_ref().expect("trained").trainable {
        Trainable::Full => None,
        Trainable::Lora(lora) => Some(Arc::new(Adapter::init(config, lora, Device::Cpu).expect("made"))),
    };
    let mut tape = Tape::recording();
    let trained: Vec<&Tensor> = match &adapter {
        Some(adapter) => adapter.named().map(|(_, t)| t).collect(),
        None => weights.iter().collect(),
    };
    trained.into_iter().for_each(|t| tape.require_grad(t));
    let pass = ModelParams { recomputed, ..ModelParams::inference(Arc::new(weights), adapter.clone()) };
    let decoder = Decoder::new(config.clone(), config.max_position_embeddings);
    let ids: Vec<u32> = (0..MICRO_BATCH as u32).collect();
    let sequences = Sequences::from_lengths(&[25, 15]);
    decoder.forward_packed(&mut tape, &pass, &ids.into(), &sequences).expect("runs");
    tape.kept_bytes() as u64
}

#[test]
fn planned_weights_are_those_that_are_loaded() {
    for name in ["llama-gqa-tied", "qwen3-gqa-tied", "qwen2-gqa"] {
        let files = files(name);
        let layers: Vec<usize> = (0..files.config.num_layers).collect();
        let loaded =
            ModelWeights::load(&files.config, &*files.weights, (&layers, layers.len()), Device::Cpu, &|_, _| {});
        let elements: usize = loaded.expect("loads").iter().map(|t| t.rows() * t.cols()).sum();
        assert_eq!(Weights::of(&files.config, Device::Cpu, 1).total(), elements as u64, "{name}");
        // Blocks of a GPU are at most an eighth larger, or a grain for each of a dozen tensors of a layer.
        let on_gpu = Weights::of(&files.config, Device::Cuda(0), 2).total();
        let bytes = 2 * elements as u64;
        assert!(on_gpu >= bytes && on_gpu <= bytes + bytes / 8 + 512 * 12 * (layers.len() as u64 + 1), "{name}");
    }
}

#[test]
fn planned_activations_are_those_that_are_kept() {
    for trainable in [Trainable::Full, Trainable::Lora(lora())] {
        let spec = spec(Device::Cpu, Some(trainable));
        let planner_work = workload(Checkpointing::Off);
        let planner = Planner::new(&spec, &planner_work).expect("planned");
        let layers = spec.student().files.config.num_layers;
        let rows = planner.student().rows(Device::Cpu, planner.branches.as_ref(), MICRO_BATCH);
        // A layer that runs again keeps its output, the next one's input.
        let saved = kept(&spec, layers - 1) - kept(&spec, layers);
        assert_eq!(saved, rows.kept() - rows.hidden(), "what one layer keeps");
        for recomputed in 0..=layers {
            let (planned, kept) = (planner.activations(recomputed), kept(&spec, recomputed));
            assert!(planned >= kept, "{recomputed} of {layers} again: {planned} planned, {kept} kept");
            // Beside what is kept: gradients under way, hidden states of the loss, a layer that runs again.
            let beside = rows.backward() + 5 * rows.hidden() + rows.kept();
            assert!(planned <= kept + beside + planned / 16, "{recomputed} again: {planned} planned, {kept} kept");
        }
    }
}

#[test]
fn as_many_layers_are_kept_as_fit() {
    let spec = spec(Device::Cpu, Some(Trainable::Full));
    let layers = spec.student().files.config.num_layers;
    let with = |available| plan(&spec, Checkpointing::Auto, available);
    assert_eq!(with(None).recomputed, [0, layers], "nothing is known, nothing is saved");
    let [none, all] = [Checkpointing::Off, Checkpointing::On].map(|c| plan(&spec, c, None));
    assert!(all.total() < none.total());
    // A sixteenth is left free.
    assert_eq!(with(Some(none.total() * 16 / 15 + 16)).recomputed[0], 0);
    let between = with(Some((none.total() - 1) * 16 / 15));
    assert!((1..layers).contains(&between.recomputed[0]), "{:?}", between.recomputed);
    between.check().expect("fits");
    let tight = with(Some(all.total() / 2));
    assert_eq!(tight.recomputed[0], layers - 1, "the last layer's activations are needed at once");
    tight.check().expect_err("does not fit either way");
}

#[test]
fn a_share_is_of_what_everything_else_leaves() {
    let spec = spec(Device::Cpu, None);
    let planned = |size, available| {
        let work = Workload { kv: KvWish::Size(size), ..workload(Checkpointing::Off) };
        MemoryPlan::of(&spec, &work, available)
    };
    let bytes = planned(KvSize::Bytes(1 << 20), None).expect("planned");
    let others = bytes.total() - bytes.get(Entry::Kv);
    let half = planned(KvSize::Share(0.5), Some(others + (8 << 20))).expect("planned");
    assert_eq!(half.kv_bytes, 4 << 20);
    half.check().expect("fits");
    assert!(planned(KvSize::Share(0.5), None).is_err(), "a share of what nobody knows");
    let error = planned(KvSize::Share(0.5), Some(others)).expect_err("nothing is left").to_string();
    assert!(error.contains("30 tokens"), "{error}");
}

#[test]
fn a_large_share_fits_although_a_pools_blocks_are_rounded_up() {
    for (available, share) in [(9u64 << 30, 0.95), (20 << 30, 0.97), (140 << 30, 0.95), (77 << 30, 0.99)] {
        let work = Workload { kv: KvWish::Size(KvSize::Share(share)), ..workload(Checkpointing::Off) };
        let plan = MemoryPlan::of(&spec(Device::Cuda(0), None), &work, Some(available)).expect("planned");
        plan.check().expect("fits");
        let (got, wanted) =
            (plan.get(Entry::Kv) as f64, share * (available - plan.total() + plan.get(Entry::Kv)) as f64);
        assert!(got <= wanted && got > 0.87 * wanted, "{got} of {wanted}");
    }
}

#[test]
fn a_teacher_that_only_grades_has_no_keys_and_values() {
    let of = |generates: bool| {
        let mut spec = spec(Device::Cuda(0), Some(Trainable::Full));
        spec.training.as_mut().expect("trained").teacher_generates = generates;
        plan(&spec, Checkpointing::Off, None)
    };
    let (alone, both) = (of(false), of(true));
    assert!(both.get(Entry::Kv) > alone.get(Entry::Kv) && both.get(Entry::Graphs) > alone.get(Entry::Graphs));
    assert_eq!(alone.get(Entry::Weights), both.get(Entry::Weights));
}

#[test]
fn a_gpu_has_masters_copies_and_workspace_and_offloading_takes_them_away() {
    let bytes = |offload: Offload| {
        let mut spec = spec(Device::Cuda(0), Some(Trainable::Full));
        spec.training.as_mut().expect("trained").offload = offload;
        plan(&spec, Checkpointing::Off, None)
    };
    let here = bytes(Offload::default());
    let weights = Weights::of(&files("llama-gqa-tied").config, Device::Cuda(0), 4);
    assert_eq!(here.get(Entry::Optimizer), 3 * weights.total());
    assert!(here.get(Entry::Copies) > 0 && here.get(Entry::Graphs) > 0);
    assert!(here.get(Entry::Workspace) >= cuda::GEMM_WORKSPACES as u64);
    assert_eq!(here.limit(), here.total() - DRIVER);

    let there = bytes(Offload { optimizer: true, teacher: false });
    assert_eq!(there.get(Entry::Optimizer), 0);
    assert!(there.pinned >= here.pinned + 3 * Weights::of(&files("llama-gqa-tied").config, Device::Cpu, 4).total());
    let there = bytes(Offload { optimizer: false, teacher: true });
    assert!(there.pinned > here.pinned);
}

/// The allocator takes a segment for each model's graphs, to the byte, and what is left of the limit for everything else.
#[test]
fn the_graphs_of_both_models_fit_what_is_planned_for_them() {
    let spec = spec(Device::Cuda(0), Some(Trainable::Full));
    let plan = plan(&spec, Checkpointing::Off, None);
    assert_eq!(plan.get(Entry::Graphs), 2 * plan.graph_segment);
    assert!(plan.graph_segment.is_multiple_of(2 << 20) && plan.graph_segment > 16 << 20, "{}", plan.graph_segment);
}

#[test]
fn the_graph_of_most_rows_is_the_largest() {
    for count in 1..600 {
        let rows = graph_rows(count);
        assert!((count..=count + count / 4).contains(&rows), "{rows} rows for {count}");
        assert!(graph_rows(count + 1) >= rows, "a plan for {} has room for fewer than one for {count}", count + 1);
    }
    let segment = |max_running| {
        let mut spec = spec(Device::Cuda(0), None);
        spec.engine.max_running = max_running;
        let plan = plan(&spec, Checkpointing::Off, None);
        plan.get(Entry::Graphs)
    };
    assert_eq!(segment(65), segment(80), "65 sequences run in a graph of 80");
}

#[test]
fn a_plan_names_every_entry() {
    let plan = plan(&spec(Device::Cuda(0), Some(Trainable::Lora(lora()))), Checkpointing::Off, None);
    let text = plan.to_string();
    for (entry, bytes) in plan.entries() {
        assert!(text.contains(&format!("{} {}", entry.name(), Bytes(bytes))), "{text}");
    }
    assert_eq!(plan.entries().map(|(_, bytes)| bytes).sum::<u64>(), plan.total());
}

/// A teacher elsewhere takes no weights and no KV memory, only what it says of two micro-batches.
#[test]
fn a_teacher_elsewhere_is_left_out() {
    let mut spec = spec(Device::Cpu, Some(Trainable::Full));
    let resident = plan(&spec, Checkpointing::Off, None);
    spec.models.truncate(1);
    let alone = plan(&spec, Checkpointing::Off, None);
    let given = Workload { given_bytes: 1000, ..workload(Checkpointing::Off) };
    let elsewhere = MemoryPlan::of(&spec, &given, None).expect("planned");
    assert!(resident.get(Entry::Weights) > alone.get(Entry::Weights));
    for entry in [Entry::Weights, Entry::Kv, Entry::Activations, Entry::Gradients] {
        assert_eq!(elsewhere.get(entry), alone.get(entry), "{entry:?}");
    }
    assert_eq!(elsewhere.get(Entry::Logits), alone.get(Entry::Logits) + 3 * 1000 * MICRO_BATCH as u64);
}

/// Adapters that are added later are weights from the start.
#[test]
fn adapters_that_will_be_added_have_room() {
    let spec = spec(Device::Cuda(0), None);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/adapters/llama-all-linear");
    let with = |count| {
        let work = Workload { adapters: vec![folder.clone(); count], ..workload(Checkpointing::Off) };
        MemoryPlan::of(&spec, &work, None).expect("planned")
    };
    let values = LoraCounts::in_folder(&folder, 2).expect("an adapter").parameters();
    let one = with(1).get(Entry::Weights) - with(0).get(Entry::Weights);
    assert!(one >= 2 * values, "{one} bytes for {values} values");
    assert_eq!(with(3).get(Entry::Weights) - with(0).get(Entry::Weights), 3 * one);
    assert!(with(1).get(Entry::Activations) > with(0).get(Entry::Activations), "what A gives of every row");
}

/// Every model counts, but weights that two of them share count once.
#[test]
fn a_second_teacher_has_weights_and_pages_of_its_own_unless_it_is_the_first_one_again() {
    let spec = spec(Device::Cpu, Some(Trainable::Full));
    let with = |name: &str| {
        let mut spec = spec.clone();
        spec.models.push(ModelSpec::new(files(name)));
        plan(&spec, Checkpointing::Off, None)
    };
    let (one, other, again) = (plan(&spec, Checkpointing::Off, None), with("qwen2-sliding"), with("qwen3-gqa-tied"));
    assert!(other.get(Entry::Weights) > again.get(Entry::Weights));
    let rotary = again.get(Entry::Weights) - one.get(Entry::Weights);
    assert!(rotary < one.get(Entry::Weights) / 4, "{rotary} bytes for weights that are there");
    assert!(other.get(Entry::Kv) > one.get(Entry::Kv) && again.get(Entry::Kv) > one.get(Entry::Kv));
}
