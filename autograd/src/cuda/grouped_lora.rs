//! LoRA of rows that have different adapters: the grouped kernels of `kernels/lora.cu`, one launch each for all adapters.
//!
//! They read borders and addresses from the GPU's memory: a [`Tiles`] list of up to sixteen rows of one adapter each, which
//! names that adapter's [`ModuleTable`].

use std::sync::Arc;

use super::linear::Columns;
use super::rows::blocks;
use super::{Arg, Array, Buffer, DType, Gpu, WordRange};
use crate::Result;

/// Largest rank of a module; the kernels' MAX_RANK. Ranks are multiples of 8.
pub(crate) const MAX_RANK: usize = 64;
/// Most projections of one input.
pub(crate) const MAX_PROJECTIONS: usize = 3;
/// Rows of a tile.
const TILE: usize = 16;
/// Words of a tile: its first row, how many, and the address of its adapter's table.
pub(crate) const TILE_WORDS: usize = 4;

/// What a table says of a module.
pub(crate) struct GroupedModule<'a> {
    pub(crate) a: &'a Array,
    pub(crate) b: &'a Array,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// Addresses, ranks and scales of an adapter's modules, by the index of their projection. The adapter has to outlive it.
pub(crate) struct ModuleTable {
    buffer: Buffer,
}

impl ModuleTable {
    /// Of each module A `[r, K]`, B `[N, r]`, r and the scale.
    pub(crate) fn new(gpu: &'static Gpu, modules: &[Option<GroupedModule>]) -> Result<Self> {
        // Six words each, as the kernel's `Module` has them.
        let words = |module: &Option<GroupedModule>| match module {
            None => [0; 6],
            Some(GroupedModule { a, b, rank, scale }) => {
                let ([a0, a1], [b0, b1]) = (halves(a.ptr()), halves(b.ptr()));
                [a0, a1, b0, b1, *rank as u32, scale.to_bits()]
            }
        };
        let words: Vec<u32> = modules.iter().flat_map(words).collect();
        Ok(Self { buffer: gpu.upload(&words)? })
    }

    pub(crate) fn ptr(&self) -> u64 {
        self.buffer.ptr()
    }
}

/// An address as two words, the low one first.
fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// The words of the tiles of segments, each so many rows and its adapter's table; rows without an adapter need none.
pub(crate) fn tiles(segments: &[(usize, Option<u64>)]) -> Vec<u32> {
    let (mut words, mut end) = (vec![], 0);
    for &(rows, table) in segments {
        let first = end;
        end += rows;
        let Some(table) = table else { continue };
        for row in (first..end).step_by(TILE) {
            words.extend([row as u32, TILE.min(end - row) as u32]);
            words.extend(halves(table));
        }
    }
    words
}

/// A list of tiles on the GPU.
#[derive(Debug)]
pub(crate) struct Tiles {
    words: WordRange,
    count: usize,
}

impl Tiles {
    /// Those that [`tiles`] lists.
    pub(crate) fn new(gpu: &'static Gpu, words: &[u32]) -> Result<Self> {
        let buffer = Arc::new(gpu.upload(words)?);
        Ok(Self::on_device(WordRange { buffer, offset: 0 }, words.len() / TILE_WORDS))
    }

    /// `count` tiles that change from run to run of a graph; those without rows are left out.
    pub(crate) fn on_device(words: WordRange, count: usize) -> Self {
        Self { words, count }
    }
}

/// `y += scale (x A^T) B^T` for the rows of every tile, in the columns of each projection that its adapter has a module for.
pub(crate) struct GroupedLora<'a> {
    /// `[rows, K]`
    pub(crate) x: Columns<'a>,
    /// `[rows, sum of columns]`
    pub(crate) y: &'a Array,
    /// Columns of each projection.
    pub(crate) columns: &'a [usize],
    /// Places of the projections in the adapters' tables.
    pub(crate) indices: &'a [usize],
    pub(crate) rows: usize,
    pub(crate) tiles: &'a Tiles,
}

impl GroupedLora<'_> {
    pub(crate) fn run(&self) -> Result<()> {
        let (gpu, projections, count) = (self.y.gpu(), self.columns.len(), self.tiles.count as u32);
        if count == 0 {
            return Ok(());
        }
        let int = |value: usize| Arg::I32(value as i32);
        let down = Array::uninit(gpu, self.rows * projections * MAX_RANK, DType::Bf16)?;
        let tiles = Arg::Ptr(self.tiles.words.ptr());
        let indices = [0, 1, 2].map(|p| int(self.indices.get(p).copied().unwrap_or(0)));
        let head = [Arg::Ptr(self.x.ptr()), int(self.x.stride), down.arg(), tiles];
        let args: Vec<Arg> = head.into_iter().chain(indices).collect();
        gpu.launch("lora_down_grouped", [count, projections as u32, 1], [256, 1, 1], 0, &args)?;
        let width: usize = self.columns.iter().sum();
        let ends = [0, 1, 2].map(|p| int(self.columns.iter().take(p + 1).sum()));
        let head = [self.y.arg(), Arg::U64(width as u64), down.arg(), int(projections), tiles];
        let args: Vec<Arg> = head.into_iter().chain(ends).chain(indices).collect();
        gpu.launch("lora_up_grouped", [blocks(width, 64), count, 1], [128, 1, 1], 0, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_sixteen_rows_of_one_adapter_at_most() {
        let table = 0x1234_5678_9ABC_DEF0;
        let words = tiles(&[(3, None), (33, Some(table)), (0, Some(1)), (1, Some(2))]);
        let [low, high] = [0x9ABC_DEF0, 0x1234_5678];
        let want = [[3, 16, low, high], [19, 16, low, high], [35, 1, low, high], [36, 1, 2, 0]];
        assert_eq!(words, want.concat());
    }
}
