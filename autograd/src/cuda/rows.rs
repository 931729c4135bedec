//! Kernels over rows and elements: norms, rotary embedding, activations, lookups, sums.

use super::attention::Pages;
use super::{Arg, Array, DType, Gpu};
use crate::{Error, Result};

/// Values that a thread moves at once.
const VECTOR: usize = 8;
const THREADS: u32 = 256;
/// Blocks that fill a GPU a few times over, for kernels whose blocks loop.
const BLOCKS: u32 = 1024;

/// `ceil(a / b)` as a grid dimension.
pub(crate) fn blocks(a: usize, b: usize) -> u32 {
    u32::try_from(a.div_ceil(b)).expect("a grid has fewer than 2^32 blocks")
}

fn int(value: usize) -> Arg {
    Arg::I32(i32::try_from(value).expect("rows and widths are below 2^31"))
}

/// Refuses widths that rows of 16-byte vectors do not have.
pub(crate) fn check_width(op: &'static str, what: &'static str, width: usize) -> Result<()> {
    if width.is_multiple_of(VECTOR) {
        return Ok(());
    }
    Err(Error::Domain { op, what, value: width as f64, expected: "a multiple of 8 on a GPU" })
}

/// Runs a kernel over the elements of `like`; the element count follows `args`.
pub(crate) fn elementwise(kernel: &str, args: &[Arg], like: &Array) -> Result<()> {
    let grid = blocks(like.len(), VECTOR * THREADS as usize).clamp(1, BLOCKS);
    let args: Vec<Arg> = args.iter().copied().chain([Arg::U64(like.len() as u64)]).collect();
    like.gpu().launch(kernel, [grid, 1, 1], [THREADS, 1, 1], 0, &args)
}

/// `x * factor` in a new array.
pub(crate) fn scaled(x: &Array, factor: f32) -> Result<Array> {
    let out = Array::uninit(x.gpu(), x.len(), x.dtype())?;
    x.copy_to(&out)?;
    let kernel = match x.dtype() {
        DType::Bf16 => "scale_bf16",
        DType::F32 => "scale",
    };
    elementwise(kernel, &[out.arg(), Arg::F32(factor)], x)?;
    Ok(out)
}

/// `a + b`.
pub(crate) fn add(a: &Array, b: &Array) -> Result<Array> {
    let out = Array::uninit(a.gpu(), a.len(), DType::Bf16)?;
    elementwise("add", &[a.arg(), b.arg(), out.arg()], a)?;
    Ok(out)
}

/// Blocks of the norm kernels: threads along a row, rows.
fn norm_block(width: usize) -> [u32; 3] {
    let x = (32 * blocks(width, 32 * VECTOR)).clamp(32, 512);
    [x, if x == 32 { 4 } else { 1 }, 1]
}

/// RMSNorm of `x [rows, width]`.
pub(crate) fn rms_norm(x: &Array, weight: &Array, [rows, width]: [usize; 2], eps: f32) -> Result<Array> {
    let out = Array::uninit(x.gpu(), x.len(), DType::Bf16)?;
    let block = norm_block(width);
    let none = Arg::Ptr(0);
    let args = [x.arg(), none, weight.arg(), none, out.arg(), int(rows), int(width), Arg::F32(eps)];
    x.gpu().launch("rms_norm_forward", [blocks(rows, block[1] as usize), 1, 1], block, 0, &args)?;
    Ok(out)
}

/// Gradients of [`rms_norm`]: of x, and of the weight (f32) when asked.
pub(crate) fn rms_norm_backward(
    [dy, x, weight]: [&Array; 3],
    [rows, width]: [usize; 2],
    eps: f32,
    want_weight: bool,
) -> Result<(Array, Option<Array>)> {
    let gpu = x.gpu();
    let dx = Array::uninit(gpu, x.len(), DType::Bf16)?;
    let block = norm_block(width);
    let grid = blocks(rows, block[1] as usize).clamp(1, 2 * gpu.info().sm_count as u32);
    let parts = (grid * block[1]) as usize;
    let partials = if want_weight { Some(Array::uninit(gpu, parts * width, DType::F32)?) } else { None };
    let address = partials.as_ref().map_or(Arg::Ptr(0), Array::arg);
    let args = [dy.arg(), x.arg(), weight.arg(), Arg::Ptr(0), dx.arg(), address, int(rows), int(width), Arg::F32(eps)];
    gpu.launch("rms_norm_backward", [grid, 1, 1], block, 0, &args)?;
    let dw = partials.map(|p| sum_partials(&p, 0, [parts, width], width)).transpose()?;
    Ok((dx, dw))
}

/// Sums of the columns `first..first + width` over `parts` rows of `stride`.
fn sum_partials(partials: &Array, first: usize, [parts, stride]: [usize; 2], width: usize) -> Result<Array> {
    let out = Array::uninit(partials.gpu(), width, DType::F32)?;
    let from = partials.part(first, partials.len() - first);
    let args = [from.arg(), out.arg(), int(parts), int(stride), int(width), Arg::I32(0)];
    partials.gpu().launch("sum_partials", [blocks(width, 32), 1, 1], [32, 32, 1], 0, &args)?;
    Ok(out)
}

/// Sums of the columns of `x [rows, width]` in f32.
pub(crate) fn column_sums(x: &Array, [rows, width]: [usize; 2]) -> Result<Array> {
    let parts = rows.div_ceil(64).clamp(1, 64);
    let partials = Array::uninit(x.gpu(), parts * width, DType::F32)?;
    let args = [x.arg(), partials.arg(), int(rows), int(width)];
    x.gpu().launch("column_sum_partials", [blocks(width, 256), parts as u32, 1], [32, 8, 1], 0, &args)?;
    sum_partials(&partials, 0, [parts, width], width)
}

/// Dropout of `x`; see [`crate::ops::Dropout`].
pub(crate) fn dropout(x: &Array, key: u64, bound: u32, keep: f32) -> Result<Array> {
    let out = Array::uninit(x.gpu(), x.len(), DType::Bf16)?;
    let args = [x.arg(), out.arg(), Arg::U64(x.len() as u64), Arg::U64(key), Arg::U32(bound), Arg::F32(keep)];
    let grid = blocks(x.len().next_multiple_of(64), 32 * THREADS as usize);
    x.gpu().launch("dropout", [grid, 1, 1], [THREADS, 1, 1], 0, &args)?;
    Ok(out)
}

/// `silu(gate) * up` of rows `[gate, up]`.
pub(crate) fn swiglu(x: &Array, [rows, inner]: [usize; 2]) -> Result<Array> {
    let out = Array::uninit(x.gpu(), rows * inner, DType::Bf16)?;
    let args = [x.arg(), out.arg(), int(rows), int(inner)];
    x.gpu().launch("swiglu_forward", swiglu_grid([rows, inner]), [128, 1, 1], 0, &args)?;
    Ok(out)
}

/// Gradient of [`swiglu`].
pub(crate) fn swiglu_backward(dy: &Array, x: &Array, [rows, inner]: [usize; 2]) -> Result<Array> {
    let out = Array::uninit(x.gpu(), x.len(), DType::Bf16)?;
    let args = [dy.arg(), x.arg(), out.arg(), int(rows), int(inner)];
    x.gpu().launch("swiglu_backward", swiglu_grid([rows, inner]), [128, 1, 1], 0, &args)?;
    Ok(out)
}

fn swiglu_grid([rows, inner]: [usize; 2]) -> [u32; 3] {
    [blocks(inner, VECTOR * 128), (rows as u32).clamp(1, 65535), 1]
}

/// Rows `indices` of `x`, by `embedding_forward` or `select_rows_forward`.
pub(crate) fn gather(kernel: &str, x: &Array, indices: u64, [rows, width]: [usize; 2]) -> Result<Array> {
    let out = Array::uninit(x.gpu(), rows * width, DType::Bf16)?;
    let args = [x.arg(), Arg::Ptr(indices), out.arg(), int(rows), int(width)];
    x.gpu().launch(kernel, [blocks(rows, 8), 1, 1], [32, 8, 1], 0, &args)?;
    Ok(out)
}

/// Rows that go to one target, in ascending order: `order[borders[s]..borders[s + 1]]` to `targets[s]`.
pub(crate) struct Segments {
    order: Vec<u32>,
    borders: Vec<u32>,
    targets: Vec<u32>,
}

impl Segments {
    /// Segments of the distinct targets alone.
    pub(crate) fn distinct(targets: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        // Stable, so that the rows of one target stay in order.
        order.sort_by_key(|&row| targets[row as usize]);
        let (mut borders, mut distinct) = (vec![], vec![]);
        for (i, &row) in order.iter().enumerate() {
            if distinct.last() != Some(&targets[row as usize]) {
                borders.push(i as u32);
                distinct.push(targets[row as usize]);
            }
        }
        borders.push(order.len() as u32);
        Self { order, borders, targets: distinct }
    }

    /// A segment for each of `count` targets, empty ones too.
    pub(crate) fn dense(targets: &[u32], count: usize) -> Self {
        let mut order: Vec<u32> = (0..targets.len() as u32).collect();
        order.sort_by_key(|&row| targets[row as usize]);
        let mut borders = vec![0; count + 1];
        for &t in targets {
            borders[t as usize + 1] += 1;
        }
        for i in 0..count {
            borders[i + 1] += borders[i];
        }
        Self { order, borders, targets: vec![] }
    }
}

/// Gradient f32 `[vocab, width]` of an embedding.
pub(crate) fn embedding_backward(dy: &Array, segments: &Segments, [vocab, width]: [usize; 2]) -> Result<Array> {
    let gpu = dy.gpu();
    let out = Array::zeros(gpu, vocab * width, DType::F32)?;
    let [order, borders, targets] =
        [gpu.upload(&segments.order)?, gpu.upload(&segments.borders)?, gpu.upload(&segments.targets)?];
    let args =
        [dy.arg(), Arg::from(&order), Arg::from(&borders), Arg::from(&targets), out.arg(), int(width), Arg::I32(0)];
    gpu.launch("embedding_backward", segment_grid(segments.targets.len(), width), [THREADS, 1, 1], 0, &args)?;
    Ok(out)
}

/// Gradient `[rows, width]` of picked rows.
pub(crate) fn select_rows_backward(dy: &Array, segments: &Segments, [rows, width]: [usize; 2]) -> Result<Array> {
    let gpu = dy.gpu();
    let out = Array::uninit(gpu, rows * width, DType::Bf16)?;
    let [order, borders] = [gpu.upload(&segments.order)?, gpu.upload(&segments.borders)?];
    let args = [dy.arg(), Arg::from(&order), Arg::from(&borders), out.arg(), int(width)];
    gpu.launch("select_rows_backward", segment_grid(rows, width), [THREADS, 1, 1], 0, &args)?;
    Ok(out)
}

fn segment_grid(segments: usize, width: usize) -> [u32; 3] {
    [segments.max(1) as u32, blocks(width, VECTOR * THREADS as usize), 1]
}

/// Heads of rows of queries, keys and values, and where their angles are.
pub(crate) struct Rotation<'a> {
    pub(crate) rows: usize,
    /// Query heads and key heads.
    pub(crate) heads: [usize; 2],
    pub(crate) dim: usize,
    pub(crate) eps: f32,
    /// Device address of the rows' positions.
    pub(crate) positions: u64,
    pub(crate) cosines: &'a Array,
    pub(crate) sines: &'a Array,
    /// Weights of the queries' and the keys' norms.
    pub(crate) norms: Option<[&'a Array; 2]>,
}

impl Rotation<'_> {
    /// Lanes that share a head.
    fn group(&self) -> usize {
        self.dim.div_ceil(16).next_power_of_two()
    }

    fn row_heads(&self) -> usize {
        self.heads[0] + 2 * self.heads[1]
    }

    fn tail(&self) -> [Arg; 6] {
        let [q, k] = self.heads.map(int);
        [int(self.rows), q, k, int(self.dim), int(self.group()), Arg::F32(self.eps)]
    }

    fn norm_args(&self) -> [Arg; 2] {
        self.norms.map_or([Arg::Ptr(0); 2], |norms| norms.map(Array::arg))
    }

    /// Normed and rotated rows; with `pages`, keys and values go there too.
    pub(crate) fn forward(&self, qkv: &Array, pages: Option<&Pages<'_>>) -> Result<Array> {
        let out = Array::uninit(qkv.gpu(), qkv.len(), DType::Bf16)?;
        let grid = blocks(self.rows * self.row_heads() * self.group(), THREADS as usize);
        let head = [qkv.arg(), out.arg(), Arg::Ptr(self.positions), self.cosines.arg(), self.sines.arg()];
        let mut args: Vec<Arg> = head.into_iter().chain(self.norm_args()).chain(self.tail()).collect();
        args.extend(pages.iter().flat_map(|pages| pages.args()));
        let kernel = if pages.is_some() { "qk_norm_rope_paged" } else { "qk_norm_rope_forward" };
        qkv.gpu().launch(kernel, [grid, 1, 1], [THREADS, 1, 1], 0, &args)?;
        Ok(out)
    }

    /// Gradients of the rows, and of the two norms (f32) when asked.
    pub(crate) fn backward(&self, dy: &Array, qkv: &Array, want_norms: bool) -> Result<(Array, Option<[Array; 2]>)> {
        let gpu: &'static Gpu = qkv.gpu();
        let dx = Array::uninit(gpu, qkv.len(), DType::Bf16)?;
        let threads = THREADS as usize;
        let grid =
            blocks(self.rows * self.row_heads() * self.group(), threads).clamp(1, 4 * gpu.info().sm_count as u32);
        let parts = grid as usize;
        let partials = if want_norms { Some(Array::uninit(gpu, parts * 2 * self.dim, DType::F32)?) } else { None };
        let shared = if want_norms { threads / self.group() * self.dim * 4 } else { 0 };
        let head = [dy.arg(), qkv.arg(), dx.arg(), Arg::Ptr(self.positions), self.cosines.arg(), self.sines.arg()];
        let address = partials.as_ref().map_or(Arg::Ptr(0), Array::arg);
        let args: Vec<Arg> = head.into_iter().chain(self.norm_args()).chain([address]).chain(self.tail()).collect();
        gpu.launch("qk_norm_rope_backward", [grid, 1, 1], [THREADS, 1, 1], shared as u32, &args)?;
        let norms = partials.map(|p| -> Result<[Array; 2]> {
            let sum = |first| sum_partials(&p, first, [parts, 2 * self.dim], self.dim);
            Ok([sum(0)?, sum(self.dim)?])
        });
        Ok((dx, norms.transpose()?))
    }
}
