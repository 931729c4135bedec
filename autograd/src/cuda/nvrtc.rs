//! NVRTC: from CUDA C++ to machine code of one architecture.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::Mutex;

use super::driver;
use super::library::{Search, Wanted, entry_points};
use crate::{Error, Result};

type Program = *mut c_void;
type Status = c_int;

entry_points! {
    /// See NVRTC's manual.
    Functions {
        nvrtcVersion: fn(*mut c_int, *mut c_int) -> Status,
        nvrtcGetNumSupportedArchs: fn(*mut c_int) -> Status,
        nvrtcGetSupportedArchs: fn(*mut c_int) -> Status,
        nvrtcGetErrorString: fn(Status) -> *const c_char,
        nvrtcCreateProgram: fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Status,
        nvrtcDestroyProgram: fn(*mut Program) -> Status,
        nvrtcCompileProgram: fn(Program, c_int, *const *const c_char) -> Status,
        nvrtcGetProgramLogSize: fn(Program, *mut usize) -> Status,
        nvrtcGetProgramLog: fn(Program, *mut c_char) -> Status,
        nvrtcGetCUBINSize: fn(Program, *mut usize) -> Status,
        nvrtcGetCUBIN: fn(Program, *mut c_char) -> Status,
    }
}

const WANTED: Wanted =
    Wanted { stem: "libnvrtc.so", package: "nvidia-cuda-nvrtc", companions: Some("libnvrtc-builtins.so.") };

/// Options of every compilation. Cached kernels are named by them.
pub(super) const OPTIONS: [&str; 2] = ["--std=c++17", "-default-device"];

/// The compiler.
pub(super) struct Nvrtc {
    functions: Functions,
    path: String,
    version: (i32, i32),
    /// `90` stands for sm_90 and sm_90a.
    architectures: Vec<i32>,
}

impl Nvrtc {
    /// The process's compiler, loaded by the first call. With a driver here, one whose code that driver can run.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: Mutex<Option<&'static Nvrtc>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(nvrtc) = *loaded {
            return Ok(nvrtc);
        }
        let driver = driver::version().ok();
        let (library, path) = WANTED.open(&Search::of_process(), driver)?;
        let nvrtc = Box::leak(Box::new(Self::of(Functions::load(library, &path)?, path)?));
        *loaded = Some(nvrtc);
        Ok(nvrtc)
    }

    fn of(functions: Functions, path: String) -> Result<Self> {
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: writes two and one integers.
        let status = unsafe { (functions.nvrtcVersion)(&raw mut major, &raw mut minor) };
        functions.check(status, "nvrtcVersion")?;
        // SAFETY: as above.
        let status = unsafe { (functions.nvrtcGetNumSupportedArchs)(&raw mut count) };
        functions.check(status, "nvrtcGetNumSupportedArchs")?;
        let mut architectures = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes the `count` integers it announced.
        let status = unsafe { (functions.nvrtcGetSupportedArchs)(architectures.as_mut_ptr()) };
        functions.check(status, "nvrtcGetSupportedArchs")?;
        Ok(Self { functions, path, version: (major, minor), architectures })
    }

    /// `13.0`
    pub(super) fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// Machine code of `source` for `arch` (`sm_90a`). `headers` are (name, text) that it may include.
    pub(super) fn compile(&self, file: &str, source: &str, headers: &[(&str, &str)], arch: &str) -> Result<Vec<u8>> {
        let failed =
            |log: String| Error::KernelCompile { file: file.to_owned(), arch: arch.to_owned(), log: log.trim().into() };
        let number = arch.strip_prefix("sm_").map(|n| n.trim_end_matches(|c: char| c.is_ascii_alphabetic()));
        if !number.and_then(|n| n.parse().ok()).is_some_and(|n| self.architectures.contains(&n)) {
            let known: Vec<_> = self.architectures.iter().map(|a| format!("sm_{a}")).collect();
            return Err(failed(format!("{} (CUDA {}) knows {}", self.path, self.version(), known.join(", "))));
        }
        let text = |text: &str| CString::new(text).map_err(|_| failed("the source holds a zero byte".to_owned()));
        let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
        let texts = headers.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>>>()?;
        let (names, texts) = (pointers(&names), pointers(&texts));
        let (source, name) = (text(source)?, text(file)?);
        let mut program = Compilation { nvrtc: self, program: null_mut() };
        // SAFETY: all strings end with zero and outlive the call, which copies them; the arrays have `names.len()`.
        let status = unsafe {
            (self.functions.nvrtcCreateProgram)(
                &raw mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                c_int::try_from(names.len()).unwrap_or(c_int::MAX),
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.functions.check(status, "nvrtcCreateProgram")?;
        let arch = format!("--gpu-architecture={arch}");
        let options = [arch.as_str()].iter().chain(&OPTIONS).map(|o| text(o)).collect::<Result<Vec<_>>>()?;
        let options = (pointers(&options), options);
        let count = c_int::try_from(options.0.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program was created; `count` strings that outlive the call.
        let status = unsafe { (self.functions.nvrtcCompileProgram)(program.program, count, options.0.as_ptr()) };
        if status != 0 {
            return Err(failed(format!("{}\n{}", self.functions.text(status), program.log())));
        }
        program.cubin()
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}

impl Functions {
    fn text(&self, status: Status) -> String {
        // SAFETY: returns a string constant for every status.
        unsafe { CStr::from_ptr((self.nvrtcGetErrorString)(status)) }.to_string_lossy().into_owned()
    }

    fn check(&self, status: Status, call: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        Err(Error::Cuda { call: call.to_owned(), code: format!("NVRTC status {status}"), text: self.text(status) })
    }
}

/// A program, destroyed with the value.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Compilation<'_> {
    fn log(&self) -> String {
        let functions = &self.nvrtc.functions;
        let mut bytes = 0;
        // SAFETY: writes one number.
        if unsafe { (functions.nvrtcGetProgramLogSize)(self.program, &raw mut bytes) } != 0 {
            return String::new();
        }
        let mut log = vec![0u8; bytes];
        // SAFETY: writes the bytes it announced.
        unsafe { (functions.nvrtcGetProgramLog)(self.program, log.as_mut_ptr().cast()) };
        String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let functions = &self.nvrtc.functions;
        let mut bytes = 0;
        // SAFETY: writes one number.
        let status = unsafe { (functions.nvrtcGetCUBINSize)(self.program, &raw mut bytes) };
        functions.check(status, "nvrtcGetCUBINSize")?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: writes the bytes it announced.
        let status = unsafe { (functions.nvrtcGetCUBIN)(self.program, cubin.as_mut_ptr().cast()) };
        functions.check(status, "nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created by nvrtcCreateProgram and destroyed once.
            unsafe { (self.nvrtc.functions.nvrtcDestroyProgram)(&raw mut self.program) };
        }
    }
}
