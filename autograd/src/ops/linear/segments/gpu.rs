//! Segments of LoRA on a GPU: two kernels for all adapters, or the kernels of one adapter for each segment.

use super::{LoraModule, LoraModules, LoraSegment, LoraSegments};
use crate::cuda::Gpu;
use crate::cuda::grouped_lora::{self, GroupedLora, GroupedModule, MAX_PROJECTIONS, MAX_RANK, ModuleTable, Tiles};
use crate::cuda::linear::Columns;
use crate::ops::linear::gpu::add_low_rank;
use crate::ops::{Projection, ensure};
use crate::{Result, Tensor};

impl LoraModule {
    fn grouped(&self) -> GroupedModule<'_> {
        GroupedModule { a: self.a.array(), b: self.b.array(), rank: self.a.rows(), scale: self.scale }
    }
}

impl LoraModules {
    /// Whether the grouped kernels have its ranks and widths.
    fn fits_grouped(&self) -> bool {
        let fits = |t: &Tensor| t.cols().is_multiple_of(8) && t.rows().is_multiple_of(8);
        self.modules.iter().flatten().all(|m| m.a.rows() <= MAX_RANK && fits(&m.a) && fits(&m.b))
    }

    /// Its addresses on the GPU, made when they are first needed.
    fn table(&self, gpu: &'static Gpu) -> Result<&ModuleTable> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let modules: Vec<Option<GroupedModule<'_>>> =
            self.modules.iter().map(|module| module.as_ref().map(LoraModule::grouped)).collect();
        let table = ModuleTable::new(gpu, &modules)?;
        Ok(self.table.get_or_init(|| table))
    }
}

impl LoraSegments {
    /// Whether a decode graph can have these adapters: those that the grouped kernels take. They do not take larger ranks than
    /// theirs; nor, in deterministic mode, any, for then every row has the additions of a batch of one adapter.
    ///
    /// # Errors
    /// There is no such GPU.
    pub fn fits_graph(&self, ordinal: usize) -> Result<bool> {
        Ok(self.are_grouped(Gpu::get(ordinal)?))
    }

    fn are_grouped(&self, gpu: &'static Gpu) -> bool {
        let mut adapters = self.segments.iter().filter_map(|segment| segment.adapter.as_ref());
        !gpu.is_deterministic() && adapters.all(|adapter| adapter.fits_grouped())
    }

    /// What the grouped kernels read.
    pub(crate) fn tile_words(&self, gpu: &'static Gpu) -> Result<Vec<u32>> {
        assert!(self.are_grouped(gpu), "adapters that the grouped kernels do not take");
        let table = |segment: &LoraSegment| match &segment.adapter {
            Some(adapter) => adapter.table(gpu).map(|table| (segment.rows, Some(table.ptr()))),
            None => Ok((segment.rows, None)),
        };
        let segments: Vec<(usize, Option<u64>)> = self.segments.iter().map(table).collect::<Result<_>>()?;
        Ok(grouped_lora::tiles(&segments))
    }

    /// The segments for the grouped kernels; `None` where they do not take them.
    fn tiles(&self, gpu: &'static Gpu) -> Result<Option<&Tiles>> {
        if let Some(tiles) = self.tiles.get() {
            return Ok(Some(tiles));
        }
        if !self.are_grouped(gpu) {
            return Ok(None);
        }
        let tiles = Tiles::new(gpu, &self.tile_words(gpu)?)?;
        Ok(Some(self.tiles.get_or_init(|| tiles)))
    }
}

/// Ranks of the intermediate values that the grouped kernels keep for each row.
pub const GROUPED_RANKS: usize = MAX_PROJECTIONS * MAX_RANK;

/// Adds the LoRA of every segment to its rows of y.
pub(super) fn add(
    y: &Tensor,
    x: &Tensor,
    (projections, indices): (&[Projection<'_>], &[usize]),
    segments: &LoraSegments,
) -> Result<()> {
    let columns: Vec<usize> = projections.iter().map(|p| p.weight.rows()).collect();
    if let Some(tiles) = segments.tiles(x.array().gpu())? {
        let fits = columns.len() <= MAX_PROJECTIONS && columns.iter().chain([&x.cols()]).all(|n| n.is_multiple_of(8));
        ensure(fits, "project_segments", "up to three projections of widths that are multiples of 8", &[x, y])?;
        let (x, y) = (Columns::all(x.array(), x.cols()), y.array());
        return GroupedLora { x, y, columns: &columns, indices, rows: segments.rows, tiles }.run();
    }
    let parts = segments.parts(projections, indices);
    parts.iter().try_for_each(|part| add_low_rank(y, x, part.rows.clone(), &part.projections))
}
