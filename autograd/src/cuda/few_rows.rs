//! Products of few rows with what stands around them, as decoding needs them: `kernels/few_rows.cu`.

use super::launch::Shape;
use super::linear::{Columns, Onto};
use super::rows::blocks;
use super::{Arg, Array, DType, Gpu};
use crate::Result;

/// Rows that a weight is read once for.
const ROWS: usize = 64;
/// Columns of a block, as the kernel has them.
const COLUMNS: usize = 64;
/// Values of K of a warp's step, as the kernel has them.
const SLICE: usize = 32;
/// Warps of a block, as the kernel has them.
const WARPS: usize = 4;
/// Blocks that a cluster can have on every card that has clusters.
const MAX_SPLITS: usize = 8;

/// `y = act(norm(x) W^T + bias) + onto` and, with branches, `down = norm(x) A^T`; x `[t, k]`, w `[n, k]`.
pub(crate) struct FewRows<'a> {
    pub(crate) x: Columns<'a>,
    pub(crate) w: &'a Array,
    pub(crate) y: Columns<'a>,
    pub(crate) dims: [usize; 3],
    /// Weight and epsilon of an RMSNorm of x.
    pub(crate) norm: Option<(&'a Array, f32)>,
    pub(crate) bias: Option<&'a Array>,
    pub(crate) onto: Onto<'a>,
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

/// Bytes of shared memory of a block for `tiles` of eight rows, as the kernel's `Ring` has them.
fn shared_bytes(tiles: usize) -> usize {
    let stages = if tiles <= 2 { 4 } else { 3 };
    WARPS * stages * (COLUMNS / 8 + 1 + tiles) * 32 * 16
}

impl<'a> FewRows<'a> {
    /// The plain product.
    pub(crate) fn new(x: Columns<'a>, w: &'a Array, y: Columns<'a>, dims: [usize; 3]) -> Self {
        Self { x, w, y, dims, norm: None, bias: None, onto: Onto::Nothing, branches: None, gate: false }
    }

    fn gpu(&self) -> &'static Gpu {
        self.y.array.gpu()
    }

    /// Tiles of eight rows of a block.
    fn tiles(&self) -> usize {
        self.dims[0].min(ROWS).div_ceil(8).next_power_of_two()
    }

    /// Whether the kernel can compute it and is the fastest that there is, measured on an H200 for models of 0.6B and 4B.
    pub(crate) fn fits(&self) -> bool {
        let [t, n, k] = self.dims;
        let ranks = self.branches.map_or(0, |b| b.ranks);
        let widths = [k, if self.gate { n / 2 } else { n }, ranks, self.x.stride, self.y.stride];
        let residual = self.residual();
        let addresses =
            [self.x.ptr(), self.w.ptr(), self.y.ptr(), residual.unwrap_or(0), self.bias.map_or(0, Array::ptr)];
        let plain_output = self.y.array.dtype() == DType::Bf16 || (residual.is_none() && self.bias.is_none());
        let alone = !self.gate || (n.is_multiple_of(2) && residual.is_none() && ranks == 0);
        (1..=ROWS).contains(&t)
            && widths.iter().all(|width| width.is_multiple_of(8))
            && addresses.iter().all(|address| address.is_multiple_of(16))
            && plain_output
            && alone
            && shared_bytes(self.tiles()) <= self.gpu().info().shared_bytes
    }

    fn residual(&self) -> Option<u64> {
        match self.onto {
            Onto::Nothing => None,
            Onto::Output => Some(self.y.ptr()),
            Onto::Other(array) => Some(Columns { array, ..self.y }.ptr()),
        }
    }

    /// Blocks that share K, so that all multiprocessors have work; by the weight's shape alone.
    fn splits(&self) -> usize {
        let ([_, n, k], info) = (self.dims, self.gpu().info());
        let tiles = n.div_ceil(COLUMNS);
        let enough = |splits: usize| {
            info.capability >= (9, 0)
                && splits <= MAX_SPLITS
                && tiles * splits <= 2 * info.sm_count
                && k.div_ceil(SLICE) >= WARPS * splits
        };
        [8, 4, 2].into_iter().find(|&splits| enough(splits)).unwrap_or(1)
    }

    pub(crate) fn run(&self) -> Result<()> {
        let ([t, n, k], splits, tiles) = (self.dims, self.splits(), self.tiles());
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
            int(splits),
        ];
        let columns = blocks(n, COLUMNS) + blocks(ranks, COLUMNS);
        let shape = Shape {
            grid: [columns * splits as u32, blocks(t, 8 * tiles), 1],
            block: [32 * WARPS as u32, 1, 1],
            shared: shared_bytes(tiles) as u32,
            cluster: splits as u32,
        };
        let gpu = self.gpu();
        gpu.launch_shape(gpu.function(&format!("project_rows{}", 8 * tiles))?, shape, &args)
    }
}
