//! GEMMs of few rows with a prologue and an epilogue, as decoding needs them: `kernels/skinny_gemm.cu`.

use super::linear::{Accumulate, Columns};
use super::rows::blocks;
use super::{Arg, Array, DType, Gpu};
use crate::Result;

/// Rows that the kernel takes; for more, cuBLASLt is faster (64 rows of a 0.6B model on an H100: 28.4k tok/s against 23.8k).
pub(crate) const ROWS: usize = 8;
/// Warps of a block, as the kernel has them.
const WARPS: usize = 8;
/// There is a kernel for these numbers of fragments of eight columns in a block.
const FRAGMENTS: [usize; 6] = [1, 2, 3, 4, 6, 8];

/// `y = act(norm(x) W^T + bias) + onto` and, with branches, `down = norm(x) A^T`; x `[t, k]`, w `[n, k]`.
pub(crate) struct SkinnyGemm<'a> {
    pub(crate) x: Columns<'a>,
    pub(crate) w: &'a Array,
    pub(crate) y: Columns<'a>,
    pub(crate) dims: [usize; 3],
    /// Weight and epsilon of an RMSNorm of x.
    pub(crate) norm: Option<(&'a Array, f32)>,
    pub(crate) bias: Option<&'a Array>,
    pub(crate) onto: Accumulate<'a>,
    pub(crate) branches: Option<Down<'a>>,
    /// `silu(gate) * up` of the two halves of the columns; then y has half as many.
    pub(crate) gate: bool,
}

/// A of low-rank branches, `[ranks, k]`, and where `x A^T` `[t, ranks]` goes.
#[derive(Clone, Copy)]
pub(crate) struct Down<'a> {
    pub(crate) a: &'a Array,
    pub(crate) ranks: usize,
    pub(crate) out: &'a Array,
}

/// Bytes of shared memory of a block, as the kernel's `Ring` has them.
fn shared_bytes(fragments: usize) -> usize {
    let slots = fragments + 2;
    WARPS * (24 / slots) * slots * 32 * 16
}

impl<'a> SkinnyGemm<'a> {
    /// The plain product.
    pub(crate) fn new(x: Columns<'a>, w: &'a Array, y: Columns<'a>, dims: [usize; 3]) -> Self {
        Self { x, w, y, dims, norm: None, bias: None, onto: Accumulate::Nothing, branches: None, gate: false }
    }

    fn gpu(&self) -> &'static Gpu {
        self.y.array.gpu()
    }

    /// Whether the kernel can compute it. In deterministic mode it must not: its warps share out K.
    pub(crate) fn fits(&self) -> bool {
        let [t, n, k] = self.dims;
        let ranks = self.branches.map_or(0, |b| b.ranks);
        let widths = [k, if self.gate { n / 2 } else { n }, ranks, self.x.stride, self.y.stride];
        let residual = self.residual();
        let addresses =
            [self.x.ptr(), self.w.ptr(), self.y.ptr(), residual.unwrap_or(0), self.bias.map_or(0, Array::ptr)];
        let plain_output = self.y.array.dtype() == DType::Bf16 || (residual.is_none() && self.bias.is_none());
        let alone = !self.gate || (n.is_multiple_of(2) && residual.is_none() && ranks == 0);
        !self.gpu().is_deterministic()
            && (1..=ROWS).contains(&t)
            && widths.iter().all(|width| width.is_multiple_of(8))
            && addresses.iter().all(|address| address.is_multiple_of(16))
            && plain_output
            && alone
            && shared_bytes(self.fragments()) <= self.gpu().info().shared_bytes
    }

    fn residual(&self) -> Option<u64> {
        match self.onto {
            Accumulate::Nothing => None,
            Accumulate::Output => Some(self.y.ptr()),
            Accumulate::Other(array) => Some(Columns { array, ..self.y }.ptr()),
        }
    }

    /// Fragments of a block: the fewest with which every block has a multiprocessor of its own.
    fn fragments(&self) -> usize {
        let fits = |&f: &usize| {
            self.dims[1].div_ceil(8 * f) <= self.gpu().info().sm_count && (!self.gate || f.is_multiple_of(2))
        };
        FRAGMENTS.into_iter().find(fits).unwrap_or(FRAGMENTS[FRAGMENTS.len() - 1])
    }

    pub(crate) fn run(&self) -> Result<()> {
        let ([t, n, k], fragments) = (self.dims, self.fragments());
        let int = |v: usize| Arg::I32(v as i32);
        let address = |array: Option<&Array>| array.map_or(Arg::Ptr(0), Array::arg);
        let ranks = self.branches.map_or(0, |b| b.ranks);
        let args = [
            Arg::Ptr(self.x.ptr()),
            Arg::U64(self.x.stride as u64),
            address(self.norm.map(|(weight, _)| weight)),
            Arg::F32(self.norm.map_or(0.0, |(_, eps)| eps)),
            self.w.arg(),
            address(self.branches.map(|b| b.a)),
            address(self.bias),
            Arg::Ptr(self.residual().unwrap_or(0)),
            Arg::Ptr(self.y.ptr()),
            Arg::U64(self.y.stride as u64),
            address(self.branches.map(|b| b.out)),
            int(t),
            int(n),
            int(k),
            int(ranks),
            int(usize::from(self.gate)),
            int(usize::from(self.y.array.dtype() == DType::F32)),
        ];
        let grid = [blocks(n, 8 * fragments) + blocks(ranks, 8 * fragments), 1, 1];
        let (block, shared) = ([32 * WARPS as u32, 1, 1], shared_bytes(fragments) as u32);
        self.gpu().launch(&format!("skinny_gemm_{fragments}"), grid, block, shared, &args)
    }
}
