//! cuBLASLt: the functions and constants that products use, the same in CUDA 12 and 13.

use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use super::driver;
use super::library::{Search, Wanted, entry_points};
use crate::{Error, Result};

pub(super) type Handle = *mut c_void;
pub(super) type MatmulDesc = *mut c_void;
pub(super) type Layout = *mut c_void;
pub(super) type Preference = *mut c_void;
pub(super) type Status = c_int;

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Algorithm {
    data: [u64; 8],
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Heuristic {
    pub(super) algorithm: Algorithm,
    pub(super) workspace: usize,
    pub(super) state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

pub(super) const R_32F: c_int = 0;
pub(super) const R_16BF: c_int = 14;
pub(super) const COMPUTE_32F: c_int = 68;
pub(super) const OP_T: c_int = 1;
pub(super) const EPILOGUE_BIAS: c_int = 4;

pub(super) const DESC_TRANSA: c_int = 3;
pub(super) const DESC_TRANSB: c_int = 4;
pub(super) const DESC_EPILOGUE: c_int = 7;
pub(super) const DESC_BIAS_POINTER: c_int = 8;
pub(super) const DESC_BIAS_DATA_TYPE: c_int = 26;

pub(super) const ALGO_SPLIT_K: c_int = 2;
pub(super) const ALGO_REDUCTION_SCHEME: c_int = 3;

pub(super) const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
/// Ways of adding up the parts of a K that was split; 0 allows no split.
pub(super) const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
/// Of A; those of B, C and D follow.
pub(super) const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;

entry_points! {
    /// See cuBLASLt's manual.
    Functions {
        cublasLtCreate: fn(*mut Handle) -> Status,
        cublasLtGetVersion: fn() -> usize,
        cublasLtMatmulDescCreate: fn(*mut MatmulDesc, c_int, c_int) -> Status,
        cublasLtMatmulDescDestroy: fn(MatmulDesc) -> Status,
        cublasLtMatmulDescSetAttribute: fn(MatmulDesc, c_int, *const c_void, usize) -> Status,
        cublasLtMatrixLayoutCreate: fn(*mut Layout, c_int, u64, u64, i64) -> Status,
        cublasLtMatrixLayoutDestroy: fn(Layout) -> Status,
        cublasLtMatmulPreferenceCreate: fn(*mut Preference) -> Status,
        cublasLtMatmulPreferenceDestroy: fn(Preference) -> Status,
        cublasLtMatmulPreferenceSetAttribute: fn(Preference, c_int, *const c_void, usize) -> Status,
        cublasLtMatmulAlgoGetHeuristic: fn(Handle, MatmulDesc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Heuristic, *mut c_int) -> Status,
        cublasLtMatmulAlgoCheck: fn(Handle, MatmulDesc, Layout, Layout, Layout, Layout, *const Algorithm, *mut Heuristic) -> Status,
        cublasLtMatmulAlgoConfigSetAttribute: fn(*mut Algorithm, c_int, *const c_void, usize) -> Status,
        cublasLtMatmul: fn(Handle, MatmulDesc, *const c_void, *const c_void, Layout, *const c_void, Layout, *const c_void, *const c_void, Layout, *mut c_void, Layout, *const Algorithm, *mut c_void, usize, *mut c_void) -> Status,
    }
}

const WANTED: Wanted = Wanted { stem: "libcublasLt.so", package: "nvidia-cublas", companions: None };

/// The process's cuBLASLt, loaded by the first call.
pub(super) fn functions() -> Result<&'static Functions> {
    static LOADED: Mutex<Option<&'static Functions>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(functions) = *loaded {
        return Ok(functions);
    }
    let (library, path) = WANTED.open(&Search::of_process(), Some(driver::version()?))?;
    let functions = Box::leak(Box::new(Functions::load(library, &path)?));
    *loaded = Some(functions);
    Ok(functions)
}

/// `Ok` for success, else the status by name. A GPU that is lost shows itself here as a failure of the library at first: the
/// driver is asked.
pub(super) fn check(call: impl FnOnce() -> String, status: Status) -> Result<()> {
    let (code, text) = match status {
        0 => return Ok(()),
        1 => ("NOT_INITIALIZED", "the library was not initialized, or the driver failed"),
        3 => ("ALLOC_FAILED", "no memory for the library's own use"),
        7 => ("INVALID_VALUE", "an argument is not allowed"),
        8 => ("ARCH_MISMATCH", "this GPU cannot do it"),
        11 => ("MAPPING_ERROR", "memory of the GPU could not be reached"),
        13 => ("EXECUTION_FAILED", "the kernel failed on the GPU"),
        14 => ("INTERNAL_ERROR", "an operation inside the library failed"),
        15 => ("NOT_SUPPORTED", "this combination of types, layouts and epilogue does not exist"),
        _ => ("unknown status", "see cublasStatus_t"),
    };
    // SAFETY: waits for the context that the failed call worked in.
    if let Err(lost @ Error::DeviceLost { .. }) = unsafe { driver::cu!(cuCtxSynchronize()) } {
        return Err(lost);
    }
    Err(Error::Cuda { call: call(), code: format!("CUBLAS_STATUS {status} {code}"), text: text.to_owned() })
}
