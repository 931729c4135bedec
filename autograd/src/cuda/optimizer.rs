//! AdamW and norms of many tensors in one launch, and AdamW on state that waits in the host's memory.

use super::{Arg, Array, Buffer, CopyStream, DType, Gpu, HostArray};
use crate::Result;

/// Elements that one block works on; the kernels' OPTIMIZER_CHUNK.
const CHUNK: usize = 16384;
const THREADS: u32 = 512;
/// Elements of offloaded state that are on the GPU at a time, in each of two lanes; whole chunks.
const PIECE: usize = 512 * CHUNK;
/// Bytes of the GPU that AdamW with offloaded state needs: masters and both moments of a piece, twice.
pub const OFFLOAD_BYTES: usize = 2 * 3 * PIECE * size_of::<f32>();

/// What belongs to one trained tensor. All but the weight are f32.
pub(crate) struct Trained<'a> {
    pub(crate) weight: &'a Array,
    pub(crate) grad: &'a Array,
    pub(crate) master: &'a Array,
    pub(crate) moments: [&'a Array; 2],
}

/// Addresses and element counts, and the pieces that blocks work on.
struct Table {
    tensors: Buffer,
    chunks: Buffer,
    count: usize,
}

impl Table {
    /// From `[weight, grad, master, m, v]` (0 where there is none) and a count for every tensor.
    fn new(gpu: &'static Gpu, tensors: &[([u64; 5], usize)]) -> Result<Self> {
        let words: Vec<u64> = tensors.iter().flat_map(|(p, n)| p.iter().copied().chain([*n as u64])).collect();
        let lists =
            tensors.iter().enumerate().map(|(t, (_, n))| (0..n.div_ceil(CHUNK)).map(move |i| [t as i32, i as i32]));
        let chunks: Vec<i32> = lists.flatten().flatten().collect();
        Ok(Self { tensors: gpu.upload(&words)?, count: chunks.len() / 2, chunks: gpu.upload(&chunks)? })
    }

    fn args(&self) -> [Arg; 2] {
        [Arg::from(&self.tensors), Arg::from(&self.chunks)]
    }
}

/// One step of AdamW on all tensors. `factors`: of the gradient, decay, 1 - beta1, beta2, 1 - beta2, step, root, eps.
pub(crate) fn adamw(tensors: &[Trained<'_>], factors: [f32; 8]) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    let gpu = first.weight.gpu();
    let row = |t: &Trained<'_>| {
        debug_assert_eq!(
            (t.grad.dtype(), t.grad.len()),
            (DType::F32, t.weight.len()),
            "the gradient of another weight"
        );
        let [m, v] = t.moments;
        ([t.weight, t.grad, t.master, m, v].map(Array::ptr), t.weight.len())
    };
    let table = Table::new(gpu, &tensors.iter().map(row).collect::<Vec<_>>())?;
    let args: Vec<Arg> = table.args().into_iter().chain(factors.map(Arg::F32)).collect();
    gpu.launch("adamw", [table.count as u32, 1, 1], [THREADS, 1, 1], 0, &args)
}

/// A trained tensor whose state waits on the host: master and both moments.
pub(crate) struct Offloaded<'a> {
    pub(crate) weight: &'a Array,
    pub(crate) grad: &'a Array,
    pub(crate) state: [&'a HostArray; 3],
}

/// [`adamw`] a piece at a time: while the GPU updates one, the next comes and the last one goes.
pub(crate) fn adamw_offloaded(tensors: &[Offloaded<'_>], factors: [f32; 8]) -> Result<()> {
    let Some(first) = tensors.first() else { return Ok(()) };
    let gpu = first.weight.gpu();
    let longest = tensors.iter().map(|t| t.weight.len()).max().unwrap_or(1).min(PIECE);
    let room = 3 * longest * size_of::<f32>();
    let lanes = [CopyStream::new(gpu, room)?, CopyStream::new(gpu, room)?];
    let pieces = tensors.iter().flat_map(|t| (0..t.weight.len()).step_by(PIECE).map(move |start| (t, start)));
    for ((tensor, start), lane) in pieces.zip(lanes.iter().cycle()) {
        let len = PIECE.min(tensor.weight.len() - start);
        let (at, bytes) = (start * size_of::<f32>(), len * size_of::<f32>());
        let places = [0, 1, 2].map(|i| i * longest * size_of::<f32>());
        for (values, place) in tensor.state.iter().zip(places) {
            lane.fetch(values.memory(), at, place, bytes)?;
        }
        lane.before_card()?;
        let [master, m, v] = places.map(|place| Array::in_buffer(lane.buffer().clone(), place, len, DType::F32));
        let [weight, grad] = [tensor.weight, tensor.grad].map(|array| array.part(start, len));
        adamw(&[Trained { weight: &weight, grad: &grad, master: &master, moments: [&m, &v] }], factors)?;
        lane.after_card()?;
        for (values, place) in tensor.state.iter().zip(places) {
            lane.store(place, values.memory(), at, bytes)?;
        }
    }
    // The end of a lane orders the GPU's later work after its copies.
    drop(lanes);
    Ok(())
}

/// The sum of all squares of f32 arrays.
pub(crate) fn square_sum(arrays: &[&Array]) -> Result<f64> {
    let Some(first) = arrays.first() else { return Ok(0.0) };
    let gpu = first.gpu();
    let rows: Vec<_> = arrays.iter().map(|a| ([0, a.ptr(), 0, 0, 0], a.len())).collect();
    let table = Table::new(gpu, &rows)?;
    let partials = gpu.alloc(table.count * size_of::<f64>())?;
    let args: Vec<Arg> = table.args().into_iter().chain([Arg::from(&partials)]).collect();
    gpu.launch("square_sum_partials", [table.count as u32, 1, 1], [THREADS, 1, 1], 0, &args)?;
    Ok(gpu.download::<f64>(&partials, 0, table.count)?.into_iter().sum())
}
