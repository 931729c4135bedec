//! From what the runtime is asked to do to bytes by purpose.

use std::collections::BTreeMap;

use autograd::kv::PAGE_TOKENS;
use autograd::{Device, cuda, ops};

use super::count::{LoraCounts, Rows, Weights, block, graph_pages, graph_rows, kv_bytes, kv_pool, parameters, rotary};
use super::{Bytes, Checkpointing, Entry, KvSize, KvWish, Workload};
use crate::config::ModelConfig;
use crate::ids::ModelId;
use crate::model::keep_layers;
use crate::request::{Offload, RuntimeSpec, Trainable};
use crate::{Error, Result};

/// Rows of logits that a head op holds at once on the host, generously.
const HEAD_ROWS: u64 = 256;
/// Host memory that uploads to a GPU pass through.
const STAGING: u64 = 64 << 20;
/// Small buffers that no other entry counts (indices, tables, draw parameters), and the holes between blocks.
const SMALL: u64 = 192 << 20;
/// What driver and libraries take outside the allocator once kernels are loaded, and each captured decode step.
pub(super) const DRIVER: u64 = 512 << 20;

/// A sum of bytes that ends at the most that can be written.
pub(super) fn total<'a>(bytes: impl IntoIterator<Item = &'a u64>) -> u64 {
    bytes.into_iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
}

/// One model of the runtime.
pub(super) struct PlannedModel {
    pub(super) config: ModelConfig,
    weights: Weights,
    /// Its own adapter, from a folder.
    adapter: Option<LoraCounts>,
    /// Ranks of the adapters that are added to it.
    added_ranks: u64,
    /// The model whose weights it has.
    shares: Option<ModelId>,
    /// Its layers wait on the host.
    offloaded: bool,
    /// Prompts are completed by it.
    generates: bool,
}

impl PlannedModel {
    fn of(spec: &RuntimeSpec, id: ModelId) -> Result<Self> {
        let (model, device) = (spec.model(id).expect("an id of the specification"), spec.device);
        let (config, _) = keep_layers(&model.files.config, model.layers.as_deref())?;
        let adapter =
            model.adapter.as_ref().map(|folder| LoraCounts::in_folder(folder, config.num_layers)).transpose()?;
        let weights = Weights::of(&config, device, device.value_bytes() as u64);
        let (shares, offloaded) = (spec.shares_weights_with(id), spec.is_offloaded(id));
        Ok(Self { config, weights, adapter, added_ranks: 0, shares, offloaded, generates: spec.generates(id) })
    }

    /// Memory of `count` rows; `trained`: with the branches that are trained.
    pub(super) fn rows<'a>(&'a self, device: Device, trained: Option<&LoraCounts>, count: usize) -> Rows<'a> {
        let ranks = trained.or(self.adapter.as_ref()).map_or(0, |branches| branches.ranks);
        Rows { config: &self.config, device, ranks: ranks.max(self.added_ranks), count: count as u64 }
    }
}

fn most_ranks(adapters: &[LoraCounts]) -> u64 {
    adapters.iter().map(|adapter| adapter.ranks.max(ops::GROUPED_RANKS as u64)).max().unwrap_or(0)
}

/// What a plan is made from.
pub(super) struct Planner<'a> {
    spec: &'a RuntimeSpec,
    workload: &'a Workload,
    device: Device,
    /// By id.
    models: Vec<PlannedModel>,
    /// The branches that are trained.
    pub(super) branches: Option<LoraCounts>,
    /// Adapters that are added to the first model.
    added: Vec<LoraCounts>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(spec: &'a RuntimeSpec, workload: &'a Workload) -> Result<Self> {
        let device = spec.device;
        let mut models: Vec<PlannedModel> = spec.ids().map(|id| PlannedModel::of(spec, id)).collect::<Result<_>>()?;
        let branches = match spec.training.as_ref().map(|training| &training.trainable) {
            Some(Trainable::Lora(lora)) => Some(LoraCounts::made(&models[0].config, lora)?),
            Some(Trainable::Full) | None => None,
        };
        let layers = models[0].config.num_layers;
        let added: Vec<LoraCounts> =
            workload.adapters.iter().map(|folder| LoraCounts::in_folder(folder, layers)).collect::<Result<_>>()?;
        // Steps of several adapters keep as many ranks as the kernels for them have.
        models[0].added_ranks = most_ranks(&added);
        Ok(Self { spec, workload, device, models, branches, added })
    }

    /// The model that is trained, or the only one.
    pub(super) fn student(&self) -> &PlannedModel {
        &self.models[0]
    }

    /// Its teachers.
    fn teachers(&self) -> &[PlannedModel] {
        &self.models[1..]
    }

    /// Values that are trained, and all of the student's weights.
    pub(super) fn parameters(&self) -> [u64; 2] {
        let all = parameters(&self.student().config);
        let trained = match (&self.branches, &self.spec.training) {
            (Some(branches), _) => branches.parameters(),
            (None, Some(_)) => all,
            (None, None) => 0,
        };
        [trained, all]
    }

    fn value(&self) -> u64 {
        self.device.value_bytes() as u64
    }

    fn offload(&self) -> Offload {
        self.spec.training.as_ref().map(|training| training.offload).unwrap_or_default()
    }

    fn on_gpu(&self) -> bool {
        self.device.capabilities().own_memory
    }

    /// The models that complete prompts.
    fn generating(&self) -> impl Iterator<Item = &PlannedModel> {
        self.models.iter().filter(|model| model.generates)
    }

    /// KV memory of each model, and the number of layers that run twice.
    pub(super) fn choose(&self, available: Option<u64>) -> Result<(u64, usize)> {
        let layers = self.student().config.num_layers;
        let checkpointing = if self.spec.training.is_some() { self.workload.checkpointing } else { Checkpointing::Off };
        let least = if checkpointing == Checkpointing::Off { 0 } else { layers };
        let kv_bytes = match &self.workload.kv {
            KvWish::Sequences(lengths) => {
                let needs =
                    self.generating().map(|model| kv_bytes(&model.config, self.device, lengths.iter().copied()));
                needs.max().unwrap_or(0)
            }
            KvWish::Size(KvSize::Bytes(bytes)) => *bytes,
            KvWish::Size(KvSize::Share(share)) => {
                let available = available.ok_or(Error::FreeMemoryUnknown)?;
                let left = available.saturating_sub(total(self.entries(least).values()));
                self.pools_within((left as f64 * share) as u64)
            }
        };
        if checkpointing != Checkpointing::Auto {
            return Ok((kv_bytes, least));
        }
        // A sixteenth stays free: what is free now need not be free later.
        let room = available.map_or(u64::MAX, |available| available - available / 16);
        let fits =
            |recomputed: &usize| total(self.entries(*recomputed).values()).saturating_add(self.kv(kv_bytes)) <= room;
        // The last layer is needed as soon as backward begins: to run it again would save nothing.
        let most = layers.saturating_sub(1);
        Ok((kv_bytes, (0..most).find(fits).unwrap_or(most)))
    }

    /// Refuses a KV memory in which the longest sequence could never run.
    pub(super) fn check_kv(&self, bytes: u64) -> Result<()> {
        let longest = self.workload.longest.max(1);
        for model in self.generating() {
            let need = kv_bytes(&model.config, self.device, [longest]);
            // One page less: alone in the pool a sequence copies nothing.
            let need = need - need / (longest.div_ceil(PAGE_TOKENS) as u64 + 1);
            if bytes < need {
                let [got, need] = [bytes, need].map(Bytes);
                return Err(Error::KvTooSmall { got, need, longest });
            }
        }
        Ok(())
    }

    /// KV memory of each model such that all pools together take no more than `total`: the blocks of a pool are rounded up.
    fn pools_within(&self, total: u64) -> u64 {
        let mut bytes = total / self.generating().count() as u64;
        while bytes > 0 && self.kv(bytes) > total {
            bytes -= (bytes / 256).max(1);
        }
        bytes
    }

    /// Bytes of the pools of all models.
    pub(super) fn kv(&self, bytes: u64) -> u64 {
        self.generating().fold(0, |sum, model| sum.saturating_add(kv_pool(&model.config, self.device, bytes)))
    }

    /// Everything but keys and values.
    pub(super) fn entries(&self, recomputed: usize) -> BTreeMap<Entry, u64> {
        let [gradients, optimizer] = self.optimizer();
        BTreeMap::from([
            (Entry::Weights, self.weights()),
            (Entry::Copies, self.copies()),
            (Entry::Gradients, gradients),
            (Entry::Optimizer, optimizer),
            (Entry::Activations, self.activations(recomputed)),
            (Entry::Logits, self.logits()),
            (Entry::Workspace, self.workspace()),
            (Entry::Graphs, self.graphs()),
            (Entry::Driver, if self.on_gpu() { DRIVER } else { 0 }),
        ])
    }

    fn weights(&self) -> u64 {
        let work = self.workload;
        let longest = work.longest.max(work.micro_batch);
        let models = self.models.iter().map(|model| {
            let weights = match model {
                model if model.shares.is_some() => 0,
                model if model.offloaded => model.weights.outer + 2 * block(self.device, model.weights.layer),
                model => model.weights.total(),
            };
            let rotary = rotary(&model.config, self.device, longest);
            let adapter = model.adapter.as_ref().map_or(0, |branches| branches.bytes(self.device, self.value()));
            weights + rotary + adapter
        });
        let adapters = self.branches.iter().chain(&self.added);
        models.sum::<u64>() + adapters.map(|branches| branches.bytes(self.device, self.value())).sum::<u64>()
    }

    /// Requests are answered with other memory than is trained.
    fn copies(&self) -> u64 {
        let (device, value) = (self.device, self.value());
        match self.spec.training.as_ref().map(|training| &training.trainable) {
            None => 0,
            Some(Trainable::Full) => {
                let shared = self.teachers().iter().any(|teacher| teacher.shares == Some(ModelId::STUDENT));
                self.student().weights.total() * (1 + u64::from(shared))
            }
            // Other devices share the branches until a step replaces them.
            Some(Trainable::Lora(lora)) => self.branches.as_ref().map_or(0, |branches| {
                if lora.merge_for_requests { branches.merged(device, value) } else { branches.bytes(device, value) }
            }),
        }
    }

    /// Gradients, and what the optimizer keeps.
    fn optimizer(&self) -> [u64; 2] {
        let Some(training) = &self.spec.training else { return [0; 2] };
        let states = if self.on_gpu() { 3 } else { 2 };
        let (all, more) = match &self.branches {
            Some(branches) => (branches.bytes(self.device, 4), 0),
            None => {
                let weights = Weights::of(&self.student().config, self.device, 4);
                // The head's new gradient lies beside the sum that it is added to.
                (weights.total(), weights.largest)
            }
        };
        [all + more, if training.offload.optimizer { 0 } else { states * all }]
    }

    /// The most of: a micro-batch in training (or measured, without one), the teacher's forward, a step of requests.
    pub(super) fn activations(&self, recomputed: usize) -> u64 {
        let work = self.workload;
        let trained = self.branches.as_ref();
        let forward = |model: &PlannedModel, trained, count| {
            let rows = model.rows(self.device, trained, count);
            rows.layer() + 3 * rows.hidden()
        };
        let step = self.spec.engine.token_budget.min(self.spec.engine.max_running.saturating_mul(work.longest));
        let requests = self.models.iter().map(|model| forward(model, trained, step));
        let requests = requests.max().unwrap_or(0);
        if work.micro_batch == 0 {
            return requests;
        }
        let rows = self.student().rows(self.device, trained, work.micro_batch);
        let kept = (self.student().config.num_layers - recomputed) as u64;
        let again = if recomputed > 0 && kept == 0 { rows.kept() } else { 0 };
        let scored = self.teachers().iter().map(|model| model.rows(self.device, None, work.micro_batch).hidden());
        let scored = scored.max().unwrap_or(0);
        // Hidden states before and after the last norm, of the scored rows, and their gradient.
        let ends = 4 * rows.hidden() + scored;
        let training = match self.spec.training {
            Some(_) => {
                let layers =
                    kept.saturating_mul(rows.kept()).saturating_add((recomputed as u64).saturating_mul(rows.hidden()));
                layers.saturating_add(again + ends + rows.backward())
            }
            None => forward(self.student(), None, work.micro_batch) + ends,
        };
        let scoring = self.teachers().iter().map(|model| forward(model, None, work.micro_batch)).max().unwrap_or(0);
        // Blocks of many sizes leave holes.
        let most = training.max(scoring).max(requests);
        most.saturating_add(most / 32)
    }

    fn logits(&self) -> u64 {
        let running = self.spec.engine.max_running;
        let drawn = self.models.iter().map(|model| model.rows(self.device, None, running).logits()).max().unwrap_or(0);
        let vocab = self.student().config.vocab_size;
        let given = self.workload.given_bytes;
        let models = 1 + usize::from(!self.teachers().is_empty() || given > 0);
        // What a teacher elsewhere says waits on the host: of the micro-batch that runs, and twice, as it came and put
        // together, of the one after it.
        let waiting = (self.workload.micro_batch as u64).saturating_mul(3 * given as u64);
        let loss = match (self.workload.micro_batch > 0, self.on_gpu()) {
            (false, _) => 0,
            (true, true) => ops::gpu_loss_bytes(self.workload.micro_batch, vocab, models) as u64,
            (true, false) => waiting.saturating_add(3 * HEAD_ROWS * vocab as u64 * 4),
        };
        drawn.max(loss)
    }

    fn workspace(&self) -> u64 {
        if !self.on_gpu() {
            return 0;
        }
        let joined = self.models.iter().map(|model| model.weights.joined).max().unwrap_or(0);
        let pieces = if self.offload().optimizer { cuda::OFFLOAD_BYTES as u64 } else { 0 };
        // Requests with penalties have a history of their tokens on the GPU: a u16 and a u8 for each of the vocabulary.
        let history =
            self.models.iter().map(|model| block(self.device, 3 * model.config.vocab_size as u64)).max().unwrap_or(0);
        let histories = history * self.spec.engine.max_running as u64;
        cuda::GEMM_WORKSPACES as u64 + joined + pieces + histories + SMALL
    }

    /// What the largest captured step of a model takes; none without a GPU.
    pub(super) fn graph_segment(&self) -> u64 {
        if !self.device.capabilities().graphs {
            return 0;
        }
        let pages = graph_pages(self.workload.longest.div_ceil(PAGE_TOKENS)) as u64;
        let rows = graph_rows(self.spec.engine.max_running);
        // An eighth more: blocks of many sizes leave holes.
        let step =
            |model: &PlannedModel| model.rows(self.device, self.branches.as_ref(), rows + rows / 8).decode(pages);
        // Results and inputs of every graph stay. Whole pages of the driver: every model's segment has to fit the plan.
        (self.generating().map(step).max().unwrap_or(0) + (16 << 20)).next_multiple_of(2 << 20)
    }

    fn graphs(&self) -> u64 {
        // A model that waits on the host has none.
        let models = self.generating().filter(|model| !model.offloaded).count();
        self.graph_segment() * models as u64
    }

    /// Memory of the host that is locked for the GPU.
    pub(super) fn pinned(&self) -> u64 {
        if !self.on_gpu() {
            return 0;
        }
        let offloaded = self.models.iter().filter(|model| model.offloaded);
        let layers: u64 = offloaded.map(|model| model.weights.total() - model.weights.outer).sum();
        let state = match &self.branches {
            _ if !self.offload().optimizer => 0,
            Some(branches) => 3 * branches.bytes(Device::Cpu, 4),
            None => 3 * Weights::of(&self.student().config, Device::Cpu, 4).total(),
        };
        STAGING + layers + state
    }
}
