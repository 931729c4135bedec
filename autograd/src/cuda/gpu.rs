//! One GPU: its context, its stream, and whose turn it is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUevent, CUstream, CUstream_flags};

use super::cublaslt;
use super::driver::{self, cu};
use super::gemm_plans::GemmPlans;
use super::kernels::Kernels;
use super::mode;
use super::nvrtc::Nvrtc;
use super::pool::Pool;
use super::staging::{Ring, Spare};
use crate::{Error, Result};

/// More GPUs than any host has.
const MAX_GPUS: usize = 64;

/// What a GPU is.
#[derive(Debug, Clone)]
pub struct GpuInfo {
    /// Its number among those this process sees.
    pub ordinal: usize,
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, (9, 0).
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub sm_count: usize,
    /// Bytes of memory.
    pub total_bytes: usize,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// Bytes of shared memory that one block can have.
    pub shared_bytes: usize,
    /// CUDA version of the driver.
    pub driver: (u32, u32),
}

/// A GPU. There is one value a GPU and process; all methods may be called from any thread.
pub struct Gpu {
    info: GpuInfo,
    arch: String,
    context: CUcontext,
    pub(super) stream: CUstream,
    /// For [`super::aside`].
    pub(super) second: CUstream,
    /// Read by everything that uses the stream, written by a capture: it keeps the others off the stream.
    turns: RwLock<()>,
    /// A graph is being captured, by whoever has the turn.
    capturing: AtomicBool,
    pub(super) pool: Mutex<Pool>,
    pub(super) ring: Mutex<Option<Ring>>,
    pub(super) spare: Mutex<Spare>,
    /// Events that are not in use.
    pub(super) events: Mutex<Vec<Mark>>,
    pub(super) kernels: Kernels,
    pub(super) products: Mutex<Option<GemmPlans>>,
    pub(super) matmuls: std::sync::atomic::AtomicU64,
    /// GEMMs by cuBLASLt in the order of deterministic mode.
    pub(super) fixed_matmuls: std::sync::atomic::AtomicU64,
    pub(super) mode: mode::State,
}

// SAFETY: the driver's handles may be used from every thread; what changes is behind locks.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

/// An event of the driver without timing.
#[derive(Clone, Copy)]
pub(super) struct Mark(pub(super) CUevent);

// SAFETY: events may be used from every thread.
unsafe impl Send for Mark {}

thread_local! {
    /// The GPU (plus one) whose context is current on this thread.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    /// How many turns this thread has on each GPU: one that has a turn does not wait for another.
    static TURNS: [Cell<u32>; MAX_GPUS] = const { [const { Cell::new(0) }; MAX_GPUS] };
}

/// The right to use the stream, with the context current on this thread.
pub(super) struct Turn<'a> {
    ordinal: usize,
    _shared: Option<RwLockReadGuard<'a, ()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        TURNS.with(|turns| turns[self.ordinal].set(turns[self.ordinal].get() - 1));
    }
}

/// The right to use the stream alone.
pub(super) struct Alone<'a> {
    gpu: &'a Gpu,
    _turn: Turn<'a>,
    _exclusive: RwLockWriteGuard<'a, ()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.gpu.capturing.store(false, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} ({})", self.info.ordinal, self.info.name)
    }
}

impl Gpu {
    /// The GPU with this number; the first call starts it.
    ///
    /// # Errors
    /// When the driver is missing or too old, there is no such GPU, or it is older than Ampere.
    pub fn get(ordinal: usize) -> Result<&'static Self> {
        static GPUS: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());
        let mut gpus = lock(&GPUS);
        if let Some(gpu) = gpus.get(&ordinal) {
            return Ok(gpu);
        }
        let gpu = Box::leak(Box::new(Self::start(ordinal)?));
        gpus.insert(ordinal, gpu);
        Ok(gpu)
    }

    /// [`Gpu::get`], and the libraries that every op needs are loaded.
    ///
    /// # Errors
    /// As [`Gpu::get`]; when NVRTC or cuBLASLt is missing.
    pub fn with_libraries(ordinal: usize) -> Result<&'static Self> {
        let gpu = Self::get(ordinal)?;
        Nvrtc::get()?;
        cublaslt::functions()?;
        Ok(gpu)
    }

    /// How many GPUs this process sees.
    ///
    /// # Errors
    /// When the driver is missing or too old.
    pub fn count() -> Result<usize> {
        driver::count()
    }

    fn start(ordinal: usize) -> Result<Self> {
        let count = driver::count()?.min(MAX_GPUS);
        if count == 0 {
            return Err(driver::no_device());
        }
        if ordinal >= count {
            let gpus = if count == 1 { "1 GPU, cuda:0".to_owned() } else { format!("{count} GPUs, from cuda:0 on") };
            return Err(Error::Device { name: format!("cuda:{ordinal}"), why: format!("the driver sees {gpus}") });
        }
        let mut device: CUdevice = 0;
        // SAFETY: writes one integer.
        unsafe { cu!(cuDeviceGet(&raw mut device, i32::try_from(ordinal).unwrap_or(i32::MAX))) }?;
        let info = describe(ordinal, device)?;
        if info.capability < (8, 0) {
            return Err(Error::UnsupportedCard { name: info.name, found: info.capability });
        }
        let (mut context, mut stream) = (null_mut(), null_mut());
        // SAFETY: the primary context is retained for the life of the process.
        unsafe { cu!(cuDevicePrimaryCtxRetain(&raw mut context, device)) }.map_err(|e| no_room(&info, e))?;
        // SAFETY: the context was just retained.
        unsafe { cu!(cuCtxSetCurrent(context)) }?;
        CURRENT.set(ordinal + 1);
        // SAFETY: writes one handle; the stream lives as long as the process.
        unsafe { cu!(cuStreamCreate(&raw mut stream, CUstream_flags::CU_STREAM_NON_BLOCKING as u32)) }?;
        let second = Self::create_second()?;
        Ok(Self {
            arch: arch(info.capability),
            info,
            context,
            stream,
            second,
            turns: RwLock::new(()),
            capturing: AtomicBool::new(false),
            pool: Mutex::default(),
            ring: Mutex::default(),
            spare: Mutex::default(),
            events: Mutex::default(),
            kernels: Kernels::default(),
            products: Mutex::default(),
            matmuls: 0.into(),
            fixed_matmuls: 0.into(),
            mode: mode::State::default(),
        })
    }

    /// What it is.
    #[must_use]
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// The architecture that kernels are compiled for, `sm_90a`.
    #[must_use]
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Bytes that the driver could give now, to this process or another.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn free_bytes(&self) -> Result<usize> {
        let _turn = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; the context is current.
        unsafe { cu!(cuMemGetInfo_v2(&raw mut free, &raw mut total)) }?;
        Ok(free)
    }

    /// Waits until all work is done. An error of a kernel shows here.
    ///
    /// # Errors
    /// When work failed; then the GPU is lost to this process.
    pub fn synchronize(&self) -> Result<()> {
        let _turn = self.enter()?;
        self.refuse_capture("a wait for the device")?;
        // SAFETY: the stream lives as long as the process.
        unsafe { cu!(cuStreamSynchronize(self.stream)) }
    }

    /// Waits for this thread's turn and makes the context current.
    pub(super) fn enter(&self) -> Result<Turn<'_>> {
        let nested = TURNS.with(|turns| {
            let count = turns[self.info.ordinal].get();
            turns[self.info.ordinal].set(count + 1);
            count > 0
        });
        // A waiting writer may block new readers, so a thread must not take the lock twice.
        let shared = (!nested).then(|| self.turns.read().unwrap_or_else(PoisonError::into_inner));
        let turn = Turn { ordinal: self.info.ordinal, _shared: shared };
        if CURRENT.get() != self.info.ordinal + 1 {
            // SAFETY: the context lives as long as the process.
            unsafe { cu!(cuCtxSetCurrent(self.context)) }?;
            CURRENT.set(self.info.ordinal + 1);
        }
        Ok(turn)
    }

    /// Waits until no other thread has a turn and keeps them off the stream; marks the start of a capture.
    pub(super) fn enter_alone(&self) -> Result<Alone<'_>> {
        if TURNS.with(|turns| turns[self.info.ordinal].get()) > 0 {
            return Err(Error::Capturing { what: "the capture of another graph" });
        }
        let exclusive = self.turns.write().unwrap_or_else(PoisonError::into_inner);
        TURNS.with(|turns| turns[self.info.ordinal].set(1));
        let turn = Turn { ordinal: self.info.ordinal, _shared: None };
        drop(self.enter()?);
        self.capturing.store(true, Ordering::Relaxed);
        Ok(Alone { gpu: self, _turn: turn, _exclusive: exclusive })
    }

    /// Whether the holder of the turn captures a graph.
    pub(super) fn is_capturing(&self) -> bool {
        self.capturing.load(Ordering::Relaxed)
    }

    pub(super) fn refuse_capture(&self, what: &'static str) -> Result<()> {
        if self.is_capturing() { Err(Error::Capturing { what }) } else { Ok(()) }
    }
}

/// The lock, also when a thread panicked with it: what it guards is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The error of a GPU that has not even the memory to be started on.
fn no_room(info: &GpuInfo, error: Error) -> Error {
    match error {
        Error::Cuda { code, .. } if code == "CUDA_ERROR_OUT_OF_MEMORY" => Error::Device {
            name: format!("cuda:{}", info.ordinal),
            why: format!(
                "starting on {} takes about 500 MiB, and less of its {} MiB is free: other programs hold the rest \
                 (nvidia-smi shows them); stop one, or let it take less (`runtime.kv_bytes`, --kv-bytes)",
                info.name,
                info.total_bytes >> 20
            ),
        },
        other => other,
    }
}

/// From Hopper on, the code that uses a GPU's own instructions is tied to it by the letter.
fn arch((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

fn describe(ordinal: usize, device: CUdevice) -> Result<GpuInfo> {
    use CUdevice_attribute as Attribute;
    let attribute = |which: Attribute| -> Result<usize> {
        let mut value = 0;
        // SAFETY: writes one integer; the device exists.
        unsafe { cu!(cuDeviceGetAttribute(&raw mut value, which, device)) }?;
        Ok(usize::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 256];
    // SAFETY: writes at most 256 bytes, the last of them zero.
    unsafe { cu!(cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), 256, device)) }?;
    let mut total_bytes = 0;
    // SAFETY: writes one number.
    unsafe { cu!(cuDeviceTotalMem_v2(&raw mut total_bytes, device)) }?;
    let number = |which| attribute(which).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    Ok(GpuInfo {
        ordinal,
        name: String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned(),
        capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_bytes,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver: driver::version()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_carry_the_letter_from_hopper_on() {
        assert_eq!(
            [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)].map(arch),
            ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"]
        );
    }

    #[test]
    fn without_cuda_the_error_names_the_driver_and_the_remedy() {
        // On a machine with a GPU there is nothing to refuse.
        if let Err(e) = Gpu::get(0) {
            let e = e.to_string();
            assert!(e.contains("driver"), "{e}");
        }
        assert!(Gpu::get(MAX_GPUS).is_err());
    }
}
