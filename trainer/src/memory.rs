//! What a run will need, against what the machine has.

use std::fmt;

use autograd::Device;
use autograd::cuda::{Gpu, MemoryStats};
use autograd::kv::{KvShape, PAGE_TOKENS};
use autograd::ops::gpu_loss_bytes;
use runtime::config::ModelConfig;

use crate::recipe::{Lora, Recipe};
use crate::{Error, Result};

const F32: u64 = 4;
/// Rows of logits that a head op holds at once on the host, generously.
const HEAD_ROWS: u64 = 256;

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Frozen and trained weights of both models, with the copies that training on a GPU needs.
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
    /// Where it runs.
    pub device: Device,
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
        let value = plan.device.value_bytes() as u64;
        let vocab = plan.student.vocab_size;
        let (copies, logits) = match plan.device {
            Device::Cpu | Device::Portable => (0, 3 * HEAD_ROWS * vocab as u64 * F32),
            // The f32 masters, and the copy that answers requests.
            Device::Cuda(_) => {
                let models = 1 + usize::from(plan.recipe.teacher.is_some());
                (trained * (F32 + value), gpu_loss_bytes(tokens as usize, vocab, models) as u64)
            }
        };
        Self {
            weights: weights * value + copies,
            optimizer: 3 * trained * F32,
            kv: plan.kv.0 * plan.kv.1,
            activations: tokens * activations_per_token(plan.student, checkpointed) * value + logits,
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
    pub fn check(&self, device: Device, available: Option<u64>, checkpointed: bool) -> Result<()> {
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
            device,
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

/// Values kept per token for the backward pass: the inputs of every op of a layer, of all layers or of one.
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

/// `cpu`, `portable`, or a card's number and name.
///
/// # Errors
/// A card that cannot be used.
pub fn describe(device: Device) -> Result<String> {
    Ok(match device {
        Device::Cpu | Device::Portable => device.to_string(),
        Device::Cuda(ordinal) => format!("{device} ({})", gpu(ordinal)?.info().name),
    })
}

/// Bytes that can be had on `device` now, on the host without swapping; `None` where the system does not tell.
///
/// # Errors
/// A card that cannot be used.
pub fn available(device: Device) -> Result<Option<u64>> {
    Ok(match device {
        Device::Cpu | Device::Portable => available_on_host(),
        Device::Cuda(ordinal) => Some(gpu(ordinal)?.free_bytes().map_err(runtime::Error::from)? as u64),
    })
}

fn gpu(ordinal: usize) -> Result<&'static Gpu> {
    Ok(Gpu::get(ordinal).map_err(runtime::Error::from)?)
}

fn available_on_host() -> Option<u64> {
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
        forecast.check(Device::Cpu, Some(75), false).expect("fits exactly");
        forecast.check(Device::Cpu, None, false).expect("nothing known, nothing refused");
        let remedy = |forecast: Forecast, checkpointed| {
            forecast.check(Device::Cuda(1), Some(74), checkpointed).expect_err("too large").to_string()
        };
        assert!(remedy(forecast, false).contains("runtime.gradient_checkpointing"));
        assert!(remedy(forecast, false).contains("available on cuda:1"));
        assert!(!remedy(forecast, true).contains("gradient_checkpointing"));
        assert!(remedy(Forecast { kv: 80, ..forecast }, false).contains("runtime.max_running"));
        assert!(remedy(Forecast { optimizer: 80, ..forecast }, false).contains("[lora]"));
    }

    /// Steps of four prompts, each twice.
    fn recipe(more: &str) -> Recipe {
        let text = format!(
            "[student]\nmodel = \"hf:org/base\"\n[teacher]\nsystem_prompt = \"x\"\n[data]\npath = \"p.jsonl\"\n\
             [schedule]\nmax_steps = 4\n[rollout]\nprompts_per_step = 4\ngroup_size = 2\n\
             [runtime]\ndevice = \"cpu\"\n{more}"
        );
        Recipe::parse(&text, "test", "test", std::path::Path::new("/"), &[]).expect("valid")
    }

    fn config() -> ModelConfig {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny-chat");
        runtime::files::ModelFiles::open(std::path::Path::new(path)).expect("a fixture").config.clone()
    }

    #[test]
    fn a_micro_batch_is_not_larger_than_a_step() {
        let (recipe, config) = (recipe(""), config());
        let plan = |longest| Plan {
            recipe: &recipe,
            device: Device::Cpu,
            student: &config,
            teacher: None,
            kv: (0, 1),
            longest,
        };
        assert_eq!((plan(100).micro_batch(), plan(1000).micro_batch()), (800, 2048));
        assert!(Forecast::of(&plan(100)).activations < Forecast::of(&plan(1000)).activations);
    }

    #[test]
    fn a_gpu_holds_values_of_two_bytes_masters_and_a_copy_to_serve() {
        let config = config();
        let forecast = |recipe: &Recipe, device, teacher| {
            Forecast::of(&Plan { recipe, device, student: &config, teacher, kv: (0, 1), longest: 100 })
        };
        let all = parameters(&config);
        let full = recipe("");
        let on_gpu = forecast(&full, Device::Cuda(0), Some(&config));
        // The trained weights, the served ones and the teacher's, and the masters.
        assert_eq!(on_gpu.weights, all * (3 * 2 + 4));
        assert_eq!(on_gpu.optimizer, all * 12);
        let on_host = forecast(&full, Device::Cpu, Some(&config));
        assert_eq!((on_host.weights, on_host.optimizer), (all * 2 * 4, all * 12));
        // 800 rows: f32 logits of student and teacher and a bf16 gradient, all rows at once.
        let logits = 800 * config.vocab_size.next_multiple_of(8) as u64 * (2 * 4 + 2);
        assert_eq!(on_gpu.activations, 800 * activations_per_token(&config, false) * 2 + logits);

        let lora = recipe("[lora]\nr = 8\nalpha = 8.0");
        let adapter = lora_parameters(&config, lora.lora.as_ref().expect("it is there"));
        let on_gpu = forecast(&lora, Device::Cuda(0), None);
        assert_eq!(on_gpu.weights, all * 2 + adapter * (2 + 2 + 4));
        assert_eq!(on_gpu.optimizer, adapter * 12);
    }

    #[test]
    fn pages_of_a_gpu_hold_values_of_two_bytes() {
        let config = config();
        // 33 tokens are three pages, and one to copy.
        let values = 2 * 4 * 2 * PAGE_TOKENS * config.num_kv_heads * config.head_dim * config.num_layers;
        assert_eq!(kv_bytes(&config, Device::Cuda(0), [33, 33]), values as u64 * 2);
        assert!(kv_bytes(&config, Device::Cpu, [33, 33]) >= values as u64 * 4);
    }

    #[test]
    fn logits_on_a_gpu_are_held_two_gib_at_a_time() {
        let bytes = gpu_loss_bytes(1 << 20, 151_936, 2) as u64;
        // f32 of two models fill the chunk; the gradient is a quarter of that.
        let whole = (2u64 << 30) + (2 << 30) / 4;
        assert!(bytes <= whole && bytes > whole / 100 * 99, "{bytes}");
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak() > 1 << 20, "{}", peak());
    }
}
