//! Kernels on the GPU: loading and counting.

use std::collections::HashMap;
use std::ffi::CString;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys::{CUfunction, CUmodule, CUresult};

use super::cache::Cache;
use super::compile::{compile_all, image};
use super::driver::cu;
use super::gpu::{Gpu, lock};
use super::launch::{Arg, MAX_ARGS};
use super::table::{FILES, OVERLAPPING};
use crate::{Error, Result};

/// What every GPU gives a block without being asked for more.
const SHARED: u32 = 48 << 10;

/// A kernel on a GPU.
pub struct Function {
    pub(super) name: String,
    pub(super) handle: CUfunction,
    /// Sizes of its parameters; none from a driver that does not tell.
    parameters: Option<Vec<usize>>,
    /// Dynamic shared memory that it may have so far.
    pub(super) shared: AtomicU32,
    pub(super) launches: AtomicU64,
    /// Whether it waits itself for the kernels before it.
    pub(super) overlaps: bool,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// How often it was launched; each run of a graph counts.
    #[must_use]
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    pub(super) fn error(&self, why: String) -> Error {
        Error::Kernel { name: self.name.clone(), why }
    }

    pub(super) fn check(&self, args: &[Arg]) -> Result<()> {
        if args.len() > MAX_ARGS {
            return Err(self.error(format!("{} arguments, at most {MAX_ARGS} can be passed", args.len())));
        }
        let Some(parameters) = &self.parameters else { return Ok(()) };
        if parameters.len() != args.len() {
            return Err(self.error(format!("has {} parameters, got {} arguments", parameters.len(), args.len())));
        }
        for (i, (arg, bytes)) in args.iter().zip(parameters).enumerate() {
            if arg.bits().1 != *bytes {
                return Err(self.error(format!("parameter {i} has {bytes} bytes, got {arg:?}")));
            }
        }
        Ok(())
    }
}

/// Loaded machine code.
pub struct Module {
    gpu: &'static Gpu,
    handle: CUmodule,
}

// SAFETY: the driver's handle may be used from every thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// A kernel of the module. The code stays loaded as long as the process.
    ///
    /// # Errors
    /// When the module has no such kernel.
    pub fn function(&self, name: &str) -> Result<Function> {
        let _turn = self.gpu.enter()?;
        let missing = |why: String| Error::Kernel { name: name.to_owned(), why };
        let symbol = CString::new(name).map_err(|_| missing("the name holds a zero byte".to_owned()))?;
        let mut handle = null_mut();
        // SAFETY: module and name are alive; writes one handle.
        unsafe { cu!(cuModuleGetFunction(&raw mut handle, self.handle, symbol.as_ptr())) }
            .map_err(|e| missing(format!("not in its file's code: {e}")))?;
        let function = Function {
            name: name.to_owned(),
            handle,
            parameters: self.gpu.parameters(handle),
            shared: SHARED.into(),
            launches: 0.into(),
            overlaps: OVERLAPPING.contains(&name),
        };
        if function.overlaps {
            self.gpu.prefer_shared(&function)?;
        }
        Ok(function)
    }
}

/// The program's kernels on one GPU, loaded when first used.
pub(super) struct Kernels {
    /// Number of the file and of the kernel, over all files, by name.
    by_name: HashMap<&'static str, (usize, usize)>,
    functions: Vec<OnceLock<Function>>,
    /// Modules of the files that were needed so far.
    modules: Mutex<HashMap<usize, Module>>,
    /// The cache has all files.
    compiled: OnceLock<()>,
}

impl Default for Kernels {
    fn default() -> Self {
        let kernels = FILES.iter().enumerate().flat_map(|(file, f)| f.kernels.iter().map(move |name| (*name, file)));
        let by_name: HashMap<_, _> = kernels.enumerate().map(|(i, (name, file))| (name, (file, i))).collect();
        let functions = (0..by_name.len()).map(|_| OnceLock::new()).collect();
        Self { by_name, functions, modules: Mutex::default(), compiled: OnceLock::new() }
    }
}

impl Gpu {
    /// Compiles, on all cores, what the cache lacks of the program's kernels; else the first launch does.
    ///
    /// # Errors
    /// As [`compile_all`].
    pub fn prepare_kernels(&'static self, progress: &(dyn Fn(&str) + Sync)) -> Result<()> {
        if self.kernels.compiled.get().is_none() {
            compile_all(self.arch(), progress)?;
            let _ = self.kernels.compiled.set(());
        }
        Ok(())
    }

    /// A kernel of the program.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot be compiled or loaded.
    pub fn function(&'static self, name: &str) -> Result<&'static Function> {
        let Some((file, index)) = self.kernels.by_name.get(name).copied() else {
            let why = "there is none of this name in the table of kernel files".to_owned();
            return Err(Error::Kernel { name: name.to_owned(), why });
        };
        let slot = &self.kernels.functions[index];
        match slot.get() {
            Some(function) => Ok(function),
            None => {
                let function = self.load_from_table(file, name)?;
                Ok(slot.get_or_init(|| function))
            }
        }
    }

    fn load_from_table(&'static self, file: usize, name: &str) -> Result<Function> {
        // The turn comes before other locks, always; otherwise a capture on another thread could wait for both.
        let _turn = self.enter()?;
        let mut modules = lock(&self.kernels.modules);
        if let Some(module) = modules.get(&file) {
            return module.function(name);
        }
        self.prepare_kernels(&|_| ())?;
        let (code, _) = image(&FILES[file], self.arch(), &Cache::of_process()?)?;
        let module = self.load(&code)?;
        let function = module.function(name);
        modules.insert(file, module);
        function
    }

    /// Loads machine code for this GPU, as [`super::compile`] makes it.
    ///
    /// # Errors
    /// When the driver does not take it.
    pub fn load(&'static self, image: &[u8]) -> Result<Module> {
        let _turn = self.enter()?;
        let mut handle = null_mut();
        // SAFETY: the driver copies the image, whose size its header tells; writes one handle.
        unsafe { cu!(cuModuleLoadData(&raw mut handle, image.as_ptr().cast())) }?;
        Ok(Module { gpu: self, handle })
    }

    /// Sizes of a kernel's parameters, from drivers of CUDA 12.4 on.
    fn parameters(&self, function: CUfunction) -> Option<Vec<usize>> {
        if self.info().driver < (12, 4) {
            return None;
        }
        let size = |index: usize| {
            let (mut offset, mut bytes) = (0, 0);
            // SAFETY: writes two numbers; an index past the end is an error.
            let status =
                unsafe { cudarc::driver::sys::cuFuncGetParamInfo(function, index, &raw mut offset, &raw mut bytes) };
            (status == CUresult::CUDA_SUCCESS).then_some(bytes)
        };
        Some((0..MAX_ARGS).map_while(size).collect())
    }

    /// How often each kernel ran, and `matmul` for products by cuBLASLt, `matmul_batch_invariant` for those in the order of
    /// deterministic mode; each run of a graph counts. Kernels that did not run are left out.
    #[must_use]
    pub fn launches(&self) -> Vec<(&'static str, u64)> {
        let names = FILES.iter().flat_map(|file| file.kernels).copied().chain(["matmul", "matmul_batch_invariant"]);
        names.zip(self.launch_counts()).filter(|(_, count)| *count > 0).collect()
    }

    fn counters(&self) -> impl Iterator<Item = Option<&AtomicU64>> {
        let kernels = self.kernels.functions.iter().map(|slot| slot.get().map(|f| &f.launches));
        kernels.chain([Some(&self.matmuls), Some(&self.fixed_matmuls)])
    }

    pub(super) fn launch_counts(&self) -> Vec<u64> {
        self.counters().map(|counter| counter.map_or(0, |c| c.load(Ordering::Relaxed))).collect()
    }

    /// What was counted since `before`, which was recorded and did not run.
    pub(super) fn take_back_counts(&self, before: &[u64]) -> Vec<(usize, u64)> {
        let counters = self.counters().zip(before).enumerate();
        let taken = counters.filter_map(|(i, (counter, before))| {
            let more = counter?.load(Ordering::Relaxed) - before;
            counter?.fetch_sub(more, Ordering::Relaxed);
            (more > 0).then_some((i, more))
        });
        taken.collect()
    }

    pub(super) fn add_counts(&self, counts: &[(usize, u64)]) {
        let mut counters = self.counters();
        let mut next = 0;
        for (index, count) in counts {
            if let Some(Some(counter)) = counters.nth(index - next) {
                counter.fetch_add(*count, Ordering::Relaxed);
            }
            next = index + 1;
        }
    }
}
