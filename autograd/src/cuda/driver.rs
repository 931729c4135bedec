//! The driver: started once, its status codes as errors.

use std::ffi::{CStr, c_char};
use std::ptr::null;
use std::sync::Mutex;

use cudarc::driver::sys::{self, CUresult};

use super::library;
use crate::{Error, Result};

/// The oldest CUDA version of a driver that will do.
const NEEDED: (u32, u32) = (12, 0);

/// Calls the driver's function and turns its status into a `Result`.
macro_rules! cu {
    ($function:ident($($arg:expr),* $(,)?)) => {
        $crate::cuda::driver::check(stringify!($function), cudarc::driver::sys::$function($($arg),*))
    };
}
pub(super) use cu;

/// `Ok` for success, else the driver's own words.
pub(super) fn check(call: &str, status: CUresult) -> Result<()> {
    if status == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |get: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text: *const c_char = null();
        // SAFETY: writes a pointer to a string constant, or null for a status that it does not know.
        unsafe { get(status, &raw mut text) };
        if text.is_null() {
            return format!("status {}", status as u32);
        }
        // SAFETY: not null, so it is the driver's constant.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    let (call, code, text) = (call.to_owned(), text(sys::cuGetErrorName), text(sys::cuGetErrorString));
    Err(if loses_device(status) { Error::DeviceLost { call, code, text } } else { Error::Cuda { call, code, text } })
}

/// Whether every later call of this process fails as well; the driver's manual says so of each of them.
fn loses_device(status: CUresult) -> bool {
    matches!(
        status,
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT
            | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUresult::CUDA_ERROR_INVALID_PC
            | CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
            | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE
    )
}

/// Loads and starts the driver, once a process; its CUDA version.
pub(super) fn version() -> Result<(u32, u32)> {
    static STARTED: Mutex<Option<(u32, u32)>> = Mutex::new(None);
    let mut started = STARTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(version) = *started {
        return Ok(version);
    }
    library::preload_driver()?;
    let mut number = 0;
    // SAFETY: the library is loaded; writes one integer; needs no cuInit.
    unsafe { cu!(cuDriverGetVersion(&raw mut number)) }?;
    let number = u32::try_from(number).unwrap_or(0);
    let version = (number / 1000, number % 1000 / 10);
    if version < NEEDED {
        return Err(Error::DriverTooOld {
            found: format!("{}.{}", version.0, version.1),
            needs: format!("{}.{} is needed", NEEDED.0, NEEDED.1),
            remedy: "Install driver 525 or newer (580 or newer for CUDA 13)".to_owned(),
        });
    }
    // SAFETY: may be called from any thread, any number of times.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Err(no_device()),
        CUresult::CUDA_ERROR_STUB_LIBRARY => Err(Error::MissingLibrary {
            library: "libcuda.so.1".to_owned(),
            why: "is the toolkit's stub, which is for linking".to_owned(),
            searched: "the loader's path".to_owned(),
            remedy: "Take the directory `stubs` out of LD_LIBRARY_PATH".to_owned(),
        }),
        status => check("cuInit", status),
    }?;
    *started = Some(version);
    Ok(version)
}

/// The number of GPUs that this process sees.
pub(super) fn count() -> Result<usize> {
    version()?;
    let mut count = 0;
    // SAFETY: the driver is started; writes one integer.
    unsafe { cu!(cuDeviceGetCount(&raw mut count)) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

pub(super) fn no_device() -> Error {
    let hint = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(visible) => format!("; CUDA_VISIBLE_DEVICES is \"{visible}\""),
        Err(_) => String::new(),
    };
    Error::Device { name: "cuda".to_owned(), why: format!("the driver sees no NVIDIA GPU{hint}") }
}
