//! The memory plan of a run: shown, refused with the key that helps, made the device's limit; and what was used.

use std::time::Duration;

use autograd::Device;
use autograd::cuda::{Gpu, MemoryStats};
use runtime::memory::{Entry, MemoryPlan, Workload};
use runtime::request::{RuntimeSpec, Trainable};

use crate::{Error, Result};
use command::progress::Progress;

pub use runtime::memory::Bytes;

/// Whose memory is planned; this decides which keys or options a hint names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A recipe.
    Training,
    /// A command on one model.
    Command,
}

/// Plans for `spec` and `workload`, prints the plan, and makes it the device's limit.
///
/// # Errors
/// As [`show`]; another process took the memory meanwhile.
pub(crate) fn plan(
    spec: &mut RuntimeSpec,
    workload: &Workload,
    purpose: Purpose,
    progress: Progress,
) -> Result<MemoryPlan> {
    let plan = show(spec, workload, purpose, progress)?;
    plan.enforce()?;
    plan.apply(spec);
    Ok(plan)
}

/// Plans for `spec` and `workload` and prints the plan.
///
/// # Errors
/// [`Error::Memory`] when it needs more than there is; what the plan itself refuses.
pub(crate) fn show(
    spec: &RuntimeSpec,
    workload: &Workload,
    purpose: Purpose,
    progress: Progress,
) -> Result<MemoryPlan> {
    let plan = MemoryPlan::of(spec, workload, available(spec.device)?).map_err(|error| match error {
        runtime::Error::KvTooSmall { got, need, longest } => {
            let hint = match purpose {
                Purpose::Training => {
                    "raise `runtime.kv_bytes`, or lower `rollout.max_new_tokens`, `eval.max_new_tokens` or `eval.max_length`"
                }
                Purpose::Command => "raise --kv-bytes, or allow shorter sequences (fewer new tokens; --max-length of arle eval)",
            };
            Error::KvTooSmall { got, need, longest, hint }
        }
        other => other.into(),
    })?;
    let room = plan.available.map_or_else(String::new, |bytes| format!(" (available: {})", Bytes(bytes)));
    progress.line(&format!("memory     {}: {plan}{room}", describe(plan.device)?));
    let [recomputed, layers] = plan.recomputed;
    if recomputed > 0 {
        progress.line(&format!("layers     {recomputed} of {layers} are computed again in the backward pass"));
    }
    check(&plan, purpose, Means::of(spec))?;
    check_pinned(&plan)?;
    Ok(plan)
}

/// Refuses a plan for more than there is, naming the key that saves most.
fn check(plan: &MemoryPlan, purpose: Purpose, means: Means) -> Result<()> {
    let Err(overflow) = plan.check() else { return Ok(()) };
    Err(Error::Memory {
        need: overflow.need,
        have: overflow.have,
        device: plan.device,
        entry: overflow.entry.name(),
        bytes: overflow.bytes,
        hint: hint(overflow.entry, plan, purpose, means),
    })
}

/// Refuses to lock more of the host's memory than it has.
fn check_pinned(plan: &MemoryPlan) -> Result<()> {
    let Some(have) = available_on_host().filter(|&have| have < plan.pinned) else { return Ok(()) };
    Err(Error::Memory {
        need: Bytes(plan.pinned),
        have: Bytes(have),
        device: Device::Cpu,
        entry: "pinned memory for offloading",
        bytes: Bytes(plan.pinned),
        hint: "set `teacher.offload` or `optim.offload` to false",
    })
}

/// What a recipe could do otherwise.
#[derive(Debug, Clone, Copy, Default)]
struct Means {
    /// `teacher.offload = true` would be accepted and is not set yet.
    offload_teacher: bool,
    /// `optim.offload = true` likewise.
    offload_optimizer: bool,
    /// An adapter is trained, so a smaller one could be.
    lower_rank: bool,
}

impl Means {
    fn of(spec: &RuntimeSpec) -> Self {
        let Some(training) = &spec.training else { return Self::default() };
        let lora = matches!(training.trainable, Trainable::Lora(_));
        let (on_gpu, one_model) = (spec.device.capabilities().own_memory, spec.teacher_shares_weights() && lora);
        Self {
            offload_teacher: on_gpu && spec.teacher().is_some() && !training.offload.teacher && !one_model,
            offload_optimizer: on_gpu && !training.offload.optimizer,
            lower_rank: lora,
        }
    }
}

/// What to change so that `largest` becomes smaller.
fn hint(largest: Entry, plan: &MemoryPlan, purpose: Purpose, means: Means) -> &'static str {
    // The optimizer keeps as many numbers twice, so these are what the adapter has of the weights.
    let bytes = |wanted| plan.entries().find(|(entry, _)| *entry == wanted).map_or(0, |(_, bytes)| bytes);
    let mostly_adapter = means.lower_rank && bytes(Entry::Gradients) > bytes(Entry::Weights) / 2;
    match (purpose, largest) {
        (Purpose::Command, Entry::Kv | Entry::Graphs) => {
            "give less with --kv-bytes, or generate fewer or shorter sequences at a time"
        }
        (Purpose::Command, Entry::Activations | Entry::Logits) => "give shorter prompts or texts",
        (Purpose::Command, _) => "choose a smaller --model, or stop other programs on the device",
        (_, Entry::Weights | Entry::Activations) if mostly_adapter => {
            "lower `lora.r`, or name fewer `lora.target_modules`"
        }
        (_, Entry::Kv | Entry::Graphs) => "lower `runtime.kv_bytes`, `runtime.max_running` or `rollout.max_new_tokens`",
        (_, Entry::Activations) if plan.recomputed[0] + 1 < plan.recomputed[1] => {
            "lower `runtime.tokens_per_microbatch` or set `runtime.gradient_checkpointing = true`"
        }
        (_, Entry::Activations | Entry::Logits) => "lower `runtime.tokens_per_microbatch`",
        (_, Entry::Optimizer) if means.lower_rank && means.offload_optimizer => {
            "lower `lora.r`, name fewer `lora.target_modules`, or set `optim.offload = true`"
        }
        (_, Entry::Optimizer | Entry::Gradients | Entry::Copies) if means.lower_rank => {
            "lower `lora.r`, or name fewer `lora.target_modules`"
        }
        (_, Entry::Optimizer) if means.offload_optimizer => {
            "set `optim.offload = true`, or train a [lora] instead of every weight"
        }
        (_, Entry::Optimizer | Entry::Gradients | Entry::Copies) => "train a [lora] instead of every weight",
        (_, Entry::Weights) if means.offload_teacher => {
            "set `teacher.offload = true`, or choose a smaller `student.model` or `teacher.model`"
        }
        (_, Entry::Weights | Entry::Workspace | Entry::Driver) => "choose a smaller `student.model` or `teacher.model`",
    }
}

/// Lets the binaries' allocator keep freed pages for the next step instead of giving them back to the system, until
/// [`release_freed_pages`].
///
/// A training step frees and allocates the same gigabyte of activations; faulting it in again was measured at 4.5 s
/// a step instead of 1.7 s (SmolLM2-135M, 896 tokens, 2 cores).
pub fn keep_freed_pages() {
    /// Longer than any run.
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    keep_freed_pages_for(YEAR);
}

/// Lets the allocator give freed pages back to the system once they have not been used for so long: a server's steps are
/// small, and what its requests take is to be free for others afterwards. Called before other threads run.
pub fn keep_freed_pages_for(time: Duration) {
    /// Index of `mi_option_purge_delay` in `mimalloc.h`: milliseconds. With -1 (never) freed pages would not even be listed.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    let milliseconds = std::ffi::c_long::try_from(time.as_millis()).unwrap_or(std::ffi::c_long::MAX);
    // SAFETY: sets one number of the allocator's options, before any other thread runs.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) };
}

/// Gives freed pages back to the system, once.
pub fn release_freed_pages() {
    // SAFETY: any thread may call it at any time; it moves nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// `cpu`, `reference`, or a GPU's number and name.
///
/// # Errors
/// A GPU that cannot be used.
pub fn describe(device: Device) -> Result<String> {
    Ok(device.describe().map_err(runtime::Error::from)?)
}

/// Bytes that can be had on `device` now, on the host without swapping; `None` where the system does not report it.
///
/// # Errors
/// A GPU that cannot be used.
pub fn available(device: Device) -> Result<Option<u64>> {
    match device.gpu().map_err(runtime::Error::from)? {
        Some(gpu) => Ok(Some(gpu.free_bytes().map_err(runtime::Error::from)? as u64)),
        None => Ok(available_on_host()),
    }
}

/// Bytes of the host that can be had without swapping; `None` where the system does not report it.
#[must_use]
pub fn available_on_host() -> Option<u64> {
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

/// Counters of the memory of `device`, when it is a GPU.
#[must_use]
pub fn on_gpu(device: Device) -> Option<MemoryStats> {
    device.gpu().ok().flatten().map(Gpu::memory)
}

/// Forgets the peak of a GPU so far.
pub fn count_peak_from_now(device: Device) {
    if let Ok(Some(gpu)) = device.gpu() {
        gpu.reset_peak();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use runtime::files::ModelFiles;
    use runtime::memory::{Checkpointing, KvSize, KvWish};
    use runtime::request::{EngineConfig, ModelSpec};

    use super::*;

    /// A plan that needs `kv` bytes and the model, with `available` bytes there.
    fn planned(kv: u64, available: u64) -> MemoryPlan {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny-chat");
        let files = Arc::new(ModelFiles::open(std::path::Path::new(path)).expect("a fixture"));
        let mut spec = RuntimeSpec::for_device(Device::Cpu, ModelSpec::new(files));
        spec.engine = EngineConfig { token_budget: 16, max_running: 1, max_waiting: 1, kv_bytes: 0, ..spec.engine };
        let workload = Workload {
            kv: KvWish::Size(KvSize::Bytes(kv)),
            longest: 16,
            micro_batch: 0,
            checkpointing: Checkpointing::Off,
            given_bytes: 0,
            adapters: vec![],
        };
        MemoryPlan::of(&spec, &workload, Some(available)).expect("planned")
    }

    #[test]
    fn a_plan_that_does_not_fit_names_what_is_there_and_the_key_that_helps() {
        let total = planned(1 << 40, 0).total();
        check(&planned(1 << 40, total), Purpose::Training, Means::default()).expect("fits exactly");
        let refusal = |purpose| {
            check(&planned(1 << 40, total - 1), purpose, Means::default()).expect_err("too large").to_string()
        };
        for word in ["1024.0 GiB", "on cpu", "kv", "`runtime.kv_bytes`"] {
            assert!(refusal(Purpose::Training).contains(word), "{}", refusal(Purpose::Training));
        }
        assert!(refusal(Purpose::Command).contains("--kv-bytes"));
    }

    #[test]
    fn activations_are_not_lowered_by_what_is_done_already() {
        let help = |recomputed| {
            let mut plan = planned(1 << 20, 1 << 30);
            plan.recomputed = recomputed;
            hint(Entry::Activations, &plan, Purpose::Training, Means::default())
        };
        assert!(help([2, 4]).contains("gradient_checkpointing"));
        assert!(!help([3, 4]).contains("gradient_checkpointing"));
        assert!(!help([4, 4]).contains("gradient_checkpointing"));
    }

    #[test]
    fn who_trains_an_adapter_is_not_told_to_train_one() {
        let plan = planned(1 << 20, 1 << 30);
        for lower_rank in [false, true] {
            let means = Means { lower_rank, ..Means::default() };
            let help = hint(Entry::Optimizer, &plan, Purpose::Training, means);
            assert_eq!((help.contains("a [lora]"), help.contains("`lora.r`")), (!lower_rank, lower_rank), "{help}");
        }
    }

    #[test]
    fn this_process_has_a_peak() {
        assert!(peak() > 1 << 20, "{}", peak());
    }
}
