//! Launching kernels.

use std::ffi::c_void;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use cudarc::driver::sys::{
    self, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchConfig, CUresult,
};

use super::driver::cu;
use super::gpu::Gpu;
use super::kernels::Function;
use super::pool::Buffer;
use crate::Result;

/// More parameters than any kernel has.
pub(super) const MAX_ARGS: usize = 64;

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// An address on the GPU.
    Ptr(u64),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `unsigned`
    U32(u32),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
}

impl Arg {
    /// Its bits in the low end of a word, as a little-endian host passes them, and its size.
    pub(super) fn bits(self) -> (u64, usize) {
        match self {
            Self::Ptr(value) | Self::U64(value) => (value, 8),
            Self::I64(value) => (value.cast_unsigned(), 8),
            Self::I32(value) => (u64::from(value.cast_unsigned()), 4),
            Self::U32(value) => (u64::from(value), 4),
            Self::F32(value) => (u64::from(value.to_bits()), 4),
        }
    }
}

impl From<&Buffer> for Arg {
    fn from(buffer: &Buffer) -> Self {
        Self::Ptr(buffer.ptr())
    }
}

macro_rules! arg_from {
    ($($number:ty => $variant:ident,)*) => { $(
        impl From<$number> for Arg {
            fn from(value: $number) -> Self {
                Self::$variant(value)
            }
        }
    )* };
}
arg_from!(i32 => I32, i64 => I64, u32 => U32, u64 => U64, f32 => F32,);

impl Gpu {
    /// Launches a kernel of the program: `grid` blocks of `block` threads with `shared_bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// When the kernel does not exist, its parameters are others, or the driver refuses.
    pub fn launch(
        &'static self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.launch_function(self.function(name)?, grid, block, shared_bytes, args)
    }

    /// As [`Gpu::launch`], without the search by name.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn launch_function(
        &'static self,
        function: &Function,
        grid @ [x, y, z]: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        function.check(args)?;
        let _turn = self.enter()?;
        if shared_bytes > function.shared.load(Ordering::Relaxed) {
            self.allow_shared(function, shared_bytes)?;
        }
        let mut words = [0u64; MAX_ARGS];
        let mut pointers = [null_mut::<c_void>(); MAX_ARGS];
        for ((word, pointer), arg) in words.iter_mut().zip(&mut pointers).zip(args) {
            *word = arg.bits().0;
            *pointer = std::ptr::from_mut(word).cast();
        }
        let mut overlap = early_start();
        // After a join, a kernel waits for all before it in the ordinary way.
        let overlaps = function.overlaps && self.is_capturing() && self.may_overlap() && !self.joins()?;
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: shared_bytes,
            hStream: self.stream,
            attrs: &raw mut overlap,
            numAttrs: overlaps.into(),
        };
        // SAFETY: the driver copies attribute and arguments, as many and as large as `check` compared. That addresses
        // are those of large enough buffers is the caller's care.
        let status =
            unsafe { sys::cuLaunchKernelEx(&raw const config, function.handle, pointers.as_mut_ptr(), null_mut()) };
        if status != CUresult::CUDA_SUCCESS {
            let call = format!("launch of {}: grid {grid:?}, block {block:?}, shared {shared_bytes}", function.name);
            return super::driver::check(&call, status);
        }
        function.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether GPU and driver let kernels of a graph overlap: Hopper and later, CUDA 12.4 and later.
    fn may_overlap(&self) -> bool {
        self.info().capability >= (9, 0) && self.info().driver >= (12, 4)
    }

    /// Gives a kernel the largest share of on-chip memory for shared memory. Kernels of unlike shares do not run on one
    /// multiprocessor at a time, so they would not overlap.
    pub(super) fn prefer_shared(&self, function: &Function) -> Result<()> {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function is loaded; the value is a percentage.
        unsafe { cu!(cuFuncSetAttribute(function.handle, attribute, 100)) }
    }

    fn allow_shared(&self, function: &Function, bytes: u32) -> Result<()> {
        if bytes as usize > self.info().shared_bytes {
            let limit = self.info().shared_bytes;
            return Err(function.error(format!("needs {bytes} bytes of shared memory, this GPU has {limit} a block")));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded.
        unsafe { cu!(cuFuncSetAttribute(function.handle, attribute, value)) }?;
        function.shared.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// The kernel may start before those ahead of it have ended.
fn early_start() -> CUlaunchAttribute {
    // SAFETY: numbers, for which zero is a value.
    let mut attribute: CUlaunchAttribute = unsafe { zeroed() };
    attribute.id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    attribute.value.programmaticStreamSerializationAllowed = 1;
    attribute
}
