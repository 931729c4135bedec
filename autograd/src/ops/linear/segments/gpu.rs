//! Segments of LoRA on a GPU: two kernels for all adapters, or the kernels of one adapter for each segment.

use super::{LoraModule, LoraModules, LoraSegment, LoraSegments};
use crate::cuda::Gpu;
use crate::cuda::grouped_lora::{self, GroupedLora, GroupedModule, MAX_PROJECTIONS, MAX_RANK, ModuleTable, Tiles};
use crate::cuda::linear::Columns;
use crate::ops::Projection;
use crate::ops::linear::gpu::add_low_rank;
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
    /// The segments as the grouped kernels want them; `None` where they cannot take them: ranks that they do not have, or
    /// deterministic mode, in which every row has the additions of a batch of one adapter.
    fn tiles(&self, gpu: &'static Gpu) -> Result<Option<&Tiles>> {
        if let Some(tiles) = self.tiles.get() {
            return Ok(Some(tiles));
        }
        let adapters = || self.segments.iter().filter_map(|segment| segment.adapter.as_ref());
        if gpu.is_deterministic() || !adapters().all(|adapter| adapter.fits_grouped()) {
            return Ok(None);
        }
        let table = |segment: &LoraSegment| match &segment.adapter {
            Some(adapter) => adapter.table(gpu).map(|table| (segment.rows, Some(table.ptr()))),
            None => Ok((segment.rows, None)),
        };
        let segments: Vec<(usize, Option<u64>)> = self.segments.iter().map(table).collect::<Result<_>>()?;
        let tiles = Tiles::new(gpu, &grouped_lora::tiles(&segments))?;
        Ok(Some(self.tiles.get_or_init(|| tiles)))
    }
}

/// Adds the LoRA of every segment to its rows of y.
pub(super) fn add(
    y: &Tensor,
    x: &Tensor,
    (projections, indices): (&[Projection<'_>], &[usize]),
    segments: &LoraSegments,
) -> Result<()> {
    let columns: Vec<usize> = projections.iter().map(|p| p.weight.rows()).collect();
    let widths = columns.iter().chain([&x.cols()]).all(|width| width.is_multiple_of(8));
    if widths
        && columns.len() <= MAX_PROJECTIONS
        && let Some(tiles) = segments.tiles(x.array().gpu())?
    {
        let (x, y) = (Columns::all(x.array(), x.cols()), y.array());
        return GroupedLora { x, y, columns: &columns, indices, rows: segments.rows(), tiles }.run();
    }
    let parts = segments.parts(projections, indices);
    parts.iter().try_for_each(|part| add_low_rank(y, x, part.rows.clone(), &part.projections))
}
