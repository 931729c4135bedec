//! What a run will need, against what the machine has.

use std::fmt;

use autograd::Device;
use autograd::cuda::{Gpu, MemoryStats};
use autograd::kv::{KvShape, PAGE_TOKENS};
use runtime::config::ModelConfig;

use crate::recipe::{Lora, Recipe};
use crate::{Error, Result};

const F32: u64 = 4;
/// Rows of logits that a head op holds at once, generously.
const HEAD_ROWS: u64 = 256;

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Frozen and trained weights of both models.
    pub weights: u64,
    /// Gradients and both moments of what is trained.
    pub optimizer: u64,
    /// Keys and values of running sequences, both models.
    pub kv: u64,
    /// What a micro-batch keeps for its backward pass, and rows of logits.
    pub activations: u64,
}

/// What the forecast is made from.
pub struct Plan<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The student, its layers already chosen.
    pub student: &'a ModelConfig,
    /// A teacher with weights of its own.
    pub teacher: Option<&'a ModelConfig>,
    /// KV bytes of one slot, and the number of slots.
    pub kv: (u64, u64),
    /// Tokens of the longest sequence that is trained on.
    pub longest: usize,
}

impl Plan<'_> {
    /// Tokens of the largest micro-batch: the limit, or a whole step when that is less.
    fn micro_batch(&self) -> u64 {
        let step = self.recipe.sequences_per_step().saturating_mul(self.longest);
        self.recipe.runtime.tokens_per_microbatch.min(step) as u64
    }
}

impl Forecast {
    /// Adds up what `plan` needs.
    #[must_use]
    pub fn of(plan: &Plan<'_>) -> Self {
        let trained = match &plan.recipe.lora {
            None => parameters(plan.student),
            Some(lora) => lora_parameters(plan.student, lora),
        };
        let adapter = if plan.recipe.lora.is_some() { trained } else { 0 };
        let weights = parameters(plan.student) + adapter + plan.teacher.map_or(0, parameters);
        let tokens = plan.micro_batch();
        let checkpointed = plan.recipe.runtime.gradient_checkpointing;
        let logits = 3 * HEAD_ROWS * plan.student.vocab_size as u64;
        Self {
            weights: weights * F32,
            optimizer: 3 * trained * F32,
            kv: plan.kv.0 * plan.kv.1,
            activations: (tokens * activations_per_token(plan.student, checkpointed) + logits) * F32,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.optimizer + self.kv + self.activations
    }

    /// Refuses a run that needs more than `available` bytes, naming the key that saves most.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn check(&self, available: Option<u64>, checkpointed: bool) -> Result<()> {
        let Some(available) = available.filter(|&available| available < self.total()) else { return Ok(()) };
        let largest = self.weights.max(self.optimizer).max(self.kv).max(self.activations);
        let remedy = if largest == self.kv {
            "lower `runtime.max_running` or `rollout.max_new_tokens`"
        } else if largest == self.activations && !checkpointed {
            "lower `runtime.tokens_per_microbatch` or set `runtime.gradient_checkpointing = true`"
        } else if largest == self.activations {
            "lower `runtime.tokens_per_microbatch`"
        } else if largest == self.optimizer {
            "train a [lora] instead of every weight"
        } else {
            "choose a smaller `student.model` or `teacher.model`"
        };
        Err(Error::Memory {
            need: Bytes(self.total()).to_string(),
            have: Bytes(available).to_string(),
            remedy: remedy.to_owned(),
        })
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, optimizer, kv, activations } = *self;
        write!(
            f,
            "{} = weights {} + gradients and moments {} + KV {} + activations {}",
            Bytes(self.total()),
            Bytes(weights),
            Bytes(optimizer),
            Bytes(kv),
            Bytes(activations)
        )
    }
}

/// A number of bytes, for people.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / (1 << 20) as f64;
        if mib >= 1024.0 { write!(f, "{:.1} GiB", mib / 1024.0) } else { write!(f, "{mib:.0} MiB") }
    }
}

/// Linear layers of a decoder layer: name, input width, output width.
fn linears(config: &ModelConfig) -> [(&'static str, u64, u64); 7] {
    let (hidden, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let queries = (config.num_heads * config.head_dim) as u64;
    let keys = (config.num_kv_heads * config.head_dim) as u64;
    [
        ("q_proj", hidden, queries),
        ("k_proj", hidden, keys),
        ("v_proj", hidden, keys),
        ("o_proj", queries, hidden),
        ("gate_proj", hidden, inner),
        ("up_proj", hidden, inner),
        ("down_proj", inner, hidden),
    ]
}

/// Weights of a model; norms and biases are too few to count.
#[must_use]
pub fn parameters(config: &ModelConfig) -> u64 {
    let layer: u64 = linears(config).iter().map(|(_, input, output)| input * output).sum();
    let embeddings = if config.tie_word_embeddings { 1 } else { 2 };
    layer * config.num_layers as u64 + embeddings * (config.vocab_size * config.hidden_size) as u64
}

fn lora_parameters(config: &ModelConfig, lora: &Lora) -> u64 {
    let targets = lora.target_modules.as_slice();
    let all = targets.iter().any(|target| target == "all-linear");
    let targeted = |name: &str| all || targets.iter().any(|target| target.ends_with(name));
    let rank = |name: &str| {
        let pattern = lora.rank_pattern.iter().find(|(key, _)| key.ends_with(name));
        pattern.map_or(lora.r, |(_, &rank)| rank) as u64
    };
    let layer: u64 =
        linears(config).iter().filter(|(name, ..)| targeted(name)).map(|(name, i, o)| rank(name) * (i + o)).sum();
    layer * config.num_layers as u64
}

/// Floats kept per token for the backward pass: the inputs of every op of a layer, of all layers or of one.
fn activations_per_token(config: &ModelConfig, checkpointed: bool) -> u64 {
    let hidden = config.hidden_size as u64;
    let heads = ((config.num_heads + 2 * config.num_kv_heads) * config.head_dim) as u64;
    let layer = 6 * hidden + 3 * heads + 4 * config.intermediate_size as u64;
    let layers = config.num_layers as u64;
    if checkpointed { layers * hidden + 2 * layer } else { (layers + 1) * layer }
}

/// Bytes of keys and values for sequences of so many tokens, in whole pages.
#[must_use]
pub fn kv_bytes(config: &ModelConfig, device: Device, lengths: impl IntoIterator<Item = usize>) -> u64 {
    let shape = KvShape { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
    // One more page a sequence: a shared last page is copied before it is written.
    let pages: usize = lengths.into_iter().map(|tokens| tokens.div_ceil(PAGE_TOKENS) + 1).sum();
    (pages * shape.page_bytes(device) * config.num_layers) as u64
}

/// Tells the binaries' allocator to keep freed pages for the next step instead of giving them back to the system.
///
/// A training step frees and allocates the same gigabyte of activations; faulting it in again was measured at 4.5 s
/// a step instead of 1.7 s (SmolLM2-135M, 896 tokens, 2 cores).
pub fn keep_freed_pages() {
    /// Index of `mi_option_purge_delay` in `mimalloc.h`: milliseconds, -1 for never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets one number of the allocator's options; called once, before any other thread runs.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}

/// Memory that can be had now without swapping; `None` where the system does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The most memory this process ever had resident, bytes.
#[must_use]
pub fn peak() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for one `rusage`, which zeroes are a value of.
    let maximum = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init().ru_maxrss
    };
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(maximum).unwrap_or(0) * unit
}

/// Counters of the memory of `device`, when it is a card.
#[must_use]
pub fn on_card(device: Device) -> Option<MemoryStats> {
    let Device::Cuda(ordinal) = device else { return None };
    Gpu::get(ordinal).ok().map(Gpu::memory)
}

/// Forgets the peak of a card so far.
pub fn count_peak_from_now(device: Device) {
    if let Device::Cuda(ordinal) = device
        && let Ok(gpu) = Gpu::get(ordinal)
    {
        gpu.reset_peak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_fit_names_the_key_that_helps() {
        let forecast = Forecast { weights: 10, optimizer: 20, kv: 5, activations: 40 };
        forecast.check(Some(75), false).expect("fits exactly");
        forecast.check(None, false).expect("nothing known, nothing refused");
        let remedy = |forecast: Forecast, checkpointed| {
            forecast.check(Some(74), checkpointed).expect_err("too large").to_string()
        };
        assert!(remedy(forecast, false).contains("runtime.gradient_checkpointing"));
        assert!(!remedy(forecast, true).contains("gradient_checkpointing"));
        assert!(remedy(Forecast { kv: 80, ..forecast }, false).contains("runtime.max_running"));
        assert!(remedy(Forecast { optimizer: 80, ..forecast }, false).contains("[lora]"));
    }

    #[test]
    fn a_micro_batch_is_not_larger_than_a_step() {
        let text = "[student]\nmodel = \"hf:org/base\"\n[teacher]\nsystem_prompt = \"x\"\n[data]\npath = \"p.jsonl\"\n\
                    [schedule]\nmax_steps = 4\n[rollout]\nprompts_per_step = 4\ngroup_size = 2";
        let recipe = Recipe::parse(text, "test", "test", std::path::Path::new("/"), &[]).expect("valid");
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-chat");
        let files = runtime::files::ModelFiles::open(std::path::Path::new(path)).expect("a fixture");
        let plan = |longest| Plan { recipe: &recipe, student: &files.config, teacher: None, kv: (0, 1), longest };
        assert_eq!((plan(100).micro_batch(), plan(1000).micro_batch()), (800, 2048));
        assert!(Forecast::of(&plan(100)).activations < Forecast::of(&plan(1000)).activations);
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak() > 1 << 20, "{}", peak());
    }
}
