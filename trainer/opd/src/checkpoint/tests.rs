use std::fs;
use std::path::PathBuf;

use runtime::request::NamedTensor;
use serde_json::Value;

use super::*;
use crate::Error;
use crate::recipe::{Override, Recipe};

fn export() -> Export {
    let text = "[student]\nmodel = \"hf:org/base@v2\"\n[teacher]\nsystem_prompt = \"x\"\n[lora]\nr = 4\nalpha = 8\n[data]\npath = \"p.jsonl\"\n[schedule]\nmax_steps = 1";
    let none: &[Override] = &[];
    let recipe = Recipe::parse(text, "test", "test", Path::new("/"), none).expect("valid");
    Export::Adapter(AdapterConfig::new(&recipe, recipe.lora.as_ref().expect("a lora section")).expect("a source"))
}

fn tensor(name: &str, values: &[f32]) -> NamedTensor {
    NamedTensor { name: name.to_owned(), shape: vec![1, values.len()], values: values.to_vec() }
}

fn weights(value: f32) -> TrainState {
    let module = "base_model.model.model.layers.0.self_attn";
    TrainState {
        weights: vec![
            // Not in the order of their names: a file may store them in another one.
            tensor(&format!("{module}.v_proj.lora_A.weight"), &[value, -0.0]),
            tensor(&format!("{module}.q_proj.lora_A.weight"), &[1.5]),
        ],
        moments: vec![tensor("q.m", &[f32::MIN_POSITIVE]), tensor("q.v", &[value])],
        step: 7,
    }
}

fn state(step: u64) -> TrainerState {
    let mut state = TrainerState::start(3, "sum".to_owned());
    (state.step, state.optimizer_step) = (step, 7);
    state
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn open(root: &Path) -> Checkpoints {
    Checkpoints::open(root.join("checkpoints"), 2).expect("opens")
}

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let run = tempfile::tempdir().expect("a folder");
    let path = open(run.path()).save(&export(), &weights(0.1), &state(7)).expect("saves");
    assert_eq!(
        names(&path),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "checkpoint.sha256",
            "optimizer.safetensors",
            "trainer_state.json"
        ]
    );
    let back = Checkpoints::load(&path, &export(), 7, &weights(0.5)).expect("loads");
    assert_eq!(Checkpoints::state(&path).expect("whole"), (state(7), true));
    assert_eq!(back.step, 7);
    let bits = |tensors: &[NamedTensor]| -> Vec<(String, Vec<usize>, Vec<u32>)> {
        tensors
            .iter()
            .map(|t| (t.name.clone(), t.shape.clone(), t.values.iter().map(|v| v.to_bits()).collect()))
            .collect()
    };
    assert_eq!(bits(&back.weights), bits(&weights(0.1).weights));
    assert_eq!(bits(&back.moments), bits(&weights(0.1).moments));
}

#[test]
fn the_adapter_is_described_as_peft_does() {
    let run = tempfile::tempdir().expect("a folder");
    let path = open(run.path()).save(&export(), &weights(0.1), &state(7)).expect("saves");
    let config: Value =
        serde_json::from_slice(&fs::read(path.join("adapter_config.json")).expect("a file")).expect("JSON");
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj"]));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &8.into()));
    assert_eq!((&config["peft_type"], &config["bias"]), (&"LORA".into(), &"none".into()));
    // PEFT and llama.cpp's converter look for a repository's name, without what ARLE puts before it.
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&"org/base".into(), &"v2".into()));
    let header = fs::read(path.join(ADAPTER_WEIGHTS)).expect("a file");
    assert!(String::from_utf8_lossy(&header).contains("{\"format\":\"pt\"}"));
}

#[test]
fn latest_follows_and_old_ones_go() {
    let run = tempfile::tempdir().expect("a folder");
    let checkpoints = open(run.path());
    assert_eq!(checkpoints.latest().expect("readable"), None);
    for step in [1, 2, 3] {
        checkpoints.save(&export(), &weights(0.1), &state(step)).expect("saves");
    }
    let root = run.path().join("checkpoints");
    assert_eq!(names(&root), ["latest", "step_000002", "step_000003"]);
    assert_eq!(fs::read_link(root.join("latest")).expect("a link"), PathBuf::from("step_000003"));
    // A resumed run that is at step 2 again replaces it and drops what came after.
    checkpoints.save(&export(), &weights(0.2), &state(2)).expect("saves");
    assert_eq!(names(&root), ["latest", "step_000002"]);
    let latest = checkpoints.latest().expect("readable").expect("there is one");
    assert_eq!(Checkpoints::load(&latest, &export(), 7, &weights(0.5)).expect("loads").weights[0].values[0], 0.2);
}

#[test]
fn what_a_kill_leaves_is_removed_and_never_loaded() {
    let run = tempfile::tempdir().expect("a folder");
    open(run.path()).save(&export(), &weights(0.1), &state(1)).expect("saves");
    let root = run.path().join("checkpoints");
    fs::create_dir(root.join(".tmp-step_000002")).expect("made");
    fs::write(root.join(".tmp-step_000002/adapter_model.safetensors"), b"half").expect("written");
    fs::create_dir(root.join(".tmp-old-step_000000")).expect("made");
    std::os::unix::fs::symlink("step_000002", root.join(".tmp-latest")).expect("linked");
    let checkpoints = open(run.path());
    assert_eq!(names(&root), ["latest", "step_000001"]);
    assert!(checkpoints.latest().expect("readable").expect("there is one").ends_with("step_000001"));
    // Killed after the first checkpoint got its name and before the link was made.
    fs::remove_file(root.join("latest")).expect("removed");
    assert!(checkpoints.latest().expect("readable").expect("there is one").ends_with("step_000001"));
}

/// Between the renames of a checkpoint that takes another's place the old one is aside, whole.
#[test]
fn a_kill_while_a_checkpoint_is_replaced_costs_neither() {
    let run = tempfile::tempdir().expect("a folder");
    let root = run.path().join("checkpoints");
    let first = |checkpoints: &Checkpoints| {
        let path = checkpoints.latest().expect("readable").expect("there is one");
        Checkpoints::load(&path, &export(), 7, &weights(0.5)).expect("loads").weights[0].values[0]
    };
    let checkpoints = open(run.path());
    checkpoints.save(&export(), &weights(0.1), &state(1)).expect("saves");
    // Before the new one has its name.
    fs::rename(root.join("step_000001"), root.join(".aside-step_000001")).expect("renamed");
    fs::create_dir(root.join(".tmp-step_000001")).expect("made");
    let checkpoints = open(run.path());
    assert_eq!((names(&root), first(&checkpoints)), (vec!["latest".to_owned(), "step_000001".to_owned()], 0.1));
    // Behind it.
    fs::rename(root.join("step_000001"), root.join(".aside-step_000001")).expect("renamed");
    checkpoints.save(&export(), &weights(0.2), &state(1)).expect("saves");
    fs::create_dir(root.join(".aside-step_000001")).expect("made");
    let checkpoints = open(run.path());
    assert_eq!((names(&root), first(&checkpoints)), (vec!["latest".to_owned(), "step_000001".to_owned()], 0.2));
}

#[test]
fn a_failed_write_leaves_everything_as_it_was() {
    let run = tempfile::tempdir().expect("a folder");
    let checkpoints = open(run.path());
    checkpoints.save(&export(), &weights(0.1), &state(1)).expect("saves");
    let full = checkpoints.publish(2, None, &|folder: &Path| {
        fs::write(folder.join("half"), b"half").expect("written");
        Err(Error::from(command::Error::Io {
            path: folder.join("half"),
            source: std::io::ErrorKind::StorageFull.into(),
        }))
    });
    assert!(full.expect_err("fails").to_string().contains("half"));
    assert_eq!(names(&run.path().join("checkpoints")), ["latest", "step_000001"]);
    Checkpoints::load(&checkpoints.latest().expect("readable").expect("there is one"), &export(), 7, &weights(0.5))
        .expect("still loads");
}

#[test]
fn a_checkpoint_of_other_tensors_is_refused() {
    let run = tempfile::tempdir().expect("a folder");
    let path = open(run.path()).save(&export(), &weights(0.1), &state(1)).expect("saves");
    let refusal = |change: fn(&mut TrainState)| {
        let mut current = weights(0.5);
        change(&mut current);
        Checkpoints::load(&path, &export(), 7, &current).expect_err("other tensors").to_string()
    };
    assert!(refusal(|state| state.weights[1].shape = vec![2, 1]).contains("q_proj"));
    assert!(refusal(|state| state.weights[0].name = "other".to_owned()).contains("`other`"));
    assert!(refusal(|state| state.moments.truncate(1)).contains("holds 2 tensors, the run trains 1"));
}

#[test]
fn a_damaged_checkpoint_names_the_file() {
    let run = tempfile::tempdir().expect("a folder");
    let path = open(run.path()).save(&export(), &weights(0.1), &state(1)).expect("saves");
    fs::write(path.join(ADAPTER_WEIGHTS), b"short").expect("written");
    assert!(
        Checkpoints::load(&path, &export(), 7, &weights(0.5))
            .expect_err("damaged")
            .to_string()
            .contains(ADAPTER_WEIGHTS)
    );
    let damaged = || Checkpoints::state(&path).expect_err("damaged").to_string();
    assert!(damaged().contains(ADAPTER_WEIGHTS) && damaged().contains("SHA-256"), "{}", damaged());
    // Of an earlier version, which wrote no sums.
    fs::remove_file(path.join("checkpoint.sha256")).expect("removed");
    assert!(!Checkpoints::state(&path).expect("readable").1);
    fs::write(path.join("trainer_state.json"), b"{}").expect("written");
    assert!(damaged().contains("trainer_state.json"), "{}", damaged());
}

#[test]
fn every_flipped_bit_of_a_checkpoint_is_found() {
    let run = tempfile::tempdir().expect("a folder");
    let path = open(run.path()).save(&export(), &weights(0.1), &state(1)).expect("saves");
    for name in names(&path) {
        let whole = fs::read(path.join(&name)).expect("a file");
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << (byte % 8);
            fs::write(path.join(&name), damaged).expect("written");
            assert!(Checkpoints::state(&path).is_err(), "{name}, byte {byte}");
        }
        fs::write(path.join(&name), whole).expect("written");
    }
    assert_eq!(Checkpoints::state(&path).expect("whole"), (state(1), true));
}

#[test]
fn a_checkpoint_that_is_amended_stays_whole() {
    let run = tempfile::tempdir().expect("a folder");
    let checkpoints = open(run.path());
    checkpoints.save(&export(), &weights(0.1), &state(1)).expect("saves");
    let mut amended = state(1);
    amended.lr = Some(0.5);
    let path = checkpoints.amend(&amended).expect("written").expect("of this step");
    assert_eq!(Checkpoints::state(&path).expect("whole"), (amended, true));
    assert_eq!(Checkpoints::load(&path, &export(), 7, &weights(0.5)).expect("loads").weights[0].values[0], 0.1);
    assert_eq!(checkpoints.amend(&state(2)).expect("another step"), None);
}

#[test]
fn the_best_stays_until_a_better_one_takes_its_place() {
    let run = tempfile::tempdir().expect("a folder");
    let checkpoints = open(run.path());
    let save = |step, best: Option<u64>| {
        let mut state = state(step);
        state.best = best.map(|step| Best { metric: "eval/kl".to_owned(), step, value: 0.5 });
        checkpoints.save(&export(), &weights(0.1), &state).expect("saves");
    };
    save(1, Some(1));
    for step in 2..5 {
        save(step, Some(1));
    }
    let folder = run.path().join("checkpoints");
    assert_eq!(names(&folder), ["best", "latest", "step_000001", "step_000003", "step_000004"]);
    assert_eq!(fs::read_link(folder.join("best")).expect("a link"), PathBuf::from("step_000001"));
    save(5, Some(5));
    assert_eq!(names(&folder), ["best", "latest", "step_000003", "step_000004", "step_000005"]);
    assert!(checkpoints.has(5) && !checkpoints.has(1));
    save(6, None);
    checkpoints.link_best(None).expect("removed");
    assert_eq!(names(&folder), ["latest", "step_000005", "step_000006"]);
}
