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
    /// An address on the card.
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

/// How many blocks a launch has and what each of them has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
    /// Blocks along x that run at the same time and see each other's shared memory; more than one from sm_90 on.
    pub(crate) cluster: u32,
}

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
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<()> {
        self.launch_shape(function, Shape { grid, block, shared: shared_bytes, cluster: 1 }, args)
    }

    /// As [`Gpu::launch_function`], in clusters of blocks.
    pub(crate) fn launch_shape(&'static self, function: &Function, shape: Shape, args: &[Arg]) -> Result<()> {
        function.check(args)?;
        let _turn = self.enter()?;
        if shape.shared > function.shared.load(Ordering::Relaxed) {
            self.allow_shared(function, shape.shared)?;
        }
        let mut words = [0u64; MAX_ARGS];
        let mut pointers = [null_mut::<c_void>(); MAX_ARGS];
        for ((word, pointer), arg) in words.iter_mut().zip(&mut pointers).zip(args) {
            *word = arg.bits().0;
            *pointer = std::ptr::from_mut(word).cast();
        }
        let (mut attributes, count) = self.attributes(function, shape.cluster);
        let config = CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.block[0],
            blockDimY: shape.block[1],
            blockDimZ: shape.block[2],
            sharedMemBytes: shape.shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: count,
        };
        // SAFETY: the driver copies attributes and arguments, as many and as large as `check` compared. That addresses
        // are those of large enough buffers is the caller's care.
        let status =
            unsafe { sys::cuLaunchKernelEx(&raw const config, function.handle, pointers.as_mut_ptr(), null_mut()) };
        if status != CUresult::CUDA_SUCCESS {
            return super::driver::check(&format!("launch of {}: {shape:?}", function.name), status);
        }
        function.launches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Clusters, and for kernels of a graph that wait themselves a start before the end of those before them.
    fn attributes(&self, function: &Function, cluster: u32) -> ([CUlaunchAttribute; 2], u32) {
        // SAFETY: numbers and pointers, for which zero is a value.
        let mut attributes: [CUlaunchAttribute; 2] = unsafe { zeroed() };
        let mut count = 0;
        if cluster > 1 {
            attributes[count].id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
            let dim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
            attributes[count].value.clusterDim = dim;
            count += 1;
        }
        if function.overlaps && self.is_capturing() && self.overlaps() {
            attributes[count].id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
            attributes[count].value.programmaticStreamSerializationAllowed = 1;
            count += 1;
        }
        (attributes, count as u32)
    }

    /// Whether card and driver let kernels of a graph overlap: Hopper and later, CUDA 12.4 and later.
    fn overlaps(&self) -> bool {
        self.info().capability >= (9, 0) && self.info().driver >= (12, 4)
    }

    fn allow_shared(&self, function: &Function, bytes: u32) -> Result<()> {
        if bytes as usize > self.info().shared_bytes {
            let card = self.info().shared_bytes;
            return Err(function.error(format!("needs {bytes} bytes of shared memory, this card has {card} a block")));
        }
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the function is loaded.
        unsafe { cu!(cuFuncSetAttribute(function.handle, attribute, value)) }?;
        function.shared.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}
