//! Linear maps, several of one input at a time, with low-rank branches.

mod dropout;
mod epilogue;
mod gpu;
mod segments;

use super::{Op, Recorded, ensure};
use crate::cpu::gemm::{self, Map, Store};
use crate::cpu::gemm_backward;
use crate::cpu::rows::for_row_blocks;
use crate::{Device, Error, Result, Tape, Tensor, reference};

pub use dropout::Dropout;
use dropout::dropped;
pub use epilogue::{Epilogue, project_within};
pub use segments::{GROUPED_RANKS, LoraModule, LoraModules, LoraSegment, LoraSegments, project_segments};

/// A low-rank branch `scale * (drop(x) A^T) B^T` (<https://arxiv.org/abs/2106.09685>).
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[r, K]`
    pub a: &'a Tensor,
    /// `[N, r]`
    pub b: &'a Tensor,
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub scale: f32,
    /// Dropout on the input of A.
    pub dropout: Option<Dropout>,
}

/// One map of an input: `x W^T (+ bias) (+ branch)`.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// `[N, K]`
    pub weight: &'a Tensor,
    /// `[1, N]`
    pub bias: Option<&'a Tensor>,
    /// The branch.
    pub low_rank: Option<LowRank<'a>>,
}

impl<'a> Projection<'a> {
    /// The plain map.
    #[must_use]
    pub fn new(weight: &'a Tensor) -> Self {
        Self { weight, bias: None, low_rank: None }
    }
}

/// What stands of a [`Projection`] besides its tensors.
struct Part {
    bias: bool,
    branch: Option<Branch>,
}

#[derive(Clone, Copy)]
struct Branch {
    scale: f32,
    dropout: Option<Dropout>,
}

/// The maps of one input, side by side. Inputs: x, the residual, then of every part w, bias, a and b, as far as there.
pub struct Linear {
    residual: bool,
    parts: Vec<Part>,
}

/// The maps of x `[T, K]` side by side, `[T, N_1 + N_2 + ..]`, added to `residual` when there is one.
///
/// # Errors
/// Shapes that do not fit, a dropout outside `[0, 1)`.
pub fn project(tape: &mut Tape, x: &Tensor, maps: &[Projection<'_>], residual: Option<&Tensor>) -> Result<Tensor> {
    let (op, inputs) = linear_of(x, maps, residual);
    tape.apply(op, &inputs)
}

/// The op of `maps`, and its inputs.
fn linear_of<'a>(x: &'a Tensor, maps: &[Projection<'a>], residual: Option<&'a Tensor>) -> (Linear, Vec<&'a Tensor>) {
    let part = |p: &Projection<'_>| Part {
        bias: p.bias.is_some(),
        branch: p.low_rank.map(|l| Branch { scale: l.scale, dropout: l.dropout }),
    };
    let op = Linear { residual: residual.is_some(), parts: maps.iter().map(part).collect() };
    let tensors = maps.iter().flat_map(|p| {
        let [a, b] = p.low_rank.map_or([None, None], |l| [Some(l.a), Some(l.b)]);
        [Some(p.weight), p.bias, a, b].into_iter().flatten()
    });
    (op, std::iter::once(x).chain(residual).chain(tensors).collect())
}

/// `x W^T (+ bias)`: x `[T, K]`, w a weight `[N, K]`, bias `[1, N]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(tape: &mut Tape, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    project(tape, x, &[Projection { bias, ..Projection::new(w) }], None)
}

/// The weight with its branch added, `W + scale * B A`, rounded to the weight's precision; on a GPU. With `into`, that
/// tensor's values are overwritten for all who hold it.
///
/// # Errors
/// Shapes that do not fit, a device that is no GPU or out of memory.
pub fn merge(weight: &Tensor, branch: &LowRank<'_>, into: Option<&Tensor>) -> Result<Tensor> {
    let fits = branch.a.cols() == weight.cols() && branch.b.shape() == [weight.rows(), branch.a.rows()];
    ensure(fits, "merge", "a [r, K] and b [N, r]", &[weight, branch.a, branch.b])?;
    match weight.device() {
        Device::Cuda(_) => gpu::merge(weight, branch, into),
        other => Err(Error::Device { name: other.to_string(), why: "weights are merged on a GPU only".to_owned() }),
    }
}

/// Where a part's tensors are among the op's inputs, and where its columns are in the output.
#[derive(Clone, Copy)]
struct Places {
    w: usize,
    bias: Option<usize>,
    /// Places of a and b.
    low_rank: Option<([usize; 2], Branch)>,
}

impl Linear {
    fn places(&self) -> Vec<Places> {
        let mut next = 1 + usize::from(self.residual);
        let mut take = |there: bool| {
            next += usize::from(there);
            next - 1
        };
        let place = |part: &Part| Places {
            w: take(true),
            bias: part.bias.then(|| take(true)),
            low_rank: part.branch.map(|branch| ([take(true), take(true)], branch)),
        };
        self.parts.iter().map(place).collect()
    }

    fn residual<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        self.residual.then(|| &inputs[1])
    }
}

/// `factor * dy W`, added to `onto` or to zero.
fn input_gradient(onto: Option<Tensor>, dy: &Tensor, w: &Tensor, factor: f32) -> Tensor {
    let shape = [dy.rows(), w.cols()];
    let mut dx = onto.map_or_else(|| vec![0.0; shape[0] * shape[1]], Tensor::into_raw);
    gemm_backward::input_gradient(&mut dx, dy.raw(), w.raw(), [dy.rows(), w.rows(), w.cols()], factor);
    Tensor::cpu(dx, shape)
}

/// `factor * dy^T x` in the layout of `w`.
fn weight_gradient(dy: &Tensor, x: &Tensor, w: &Tensor, factor: f32) -> Tensor {
    let mut dw = vec![0.0; w.raw().len()];
    gemm_backward::weight_gradient(&mut dw, dy.raw(), x.raw(), [dy.rows(), w.rows(), w.cols()], factor);
    Tensor::cpu_with_layout(dw, w.shape(), w.layout())
}

/// `sum + x` on the host.
fn add_onto(sum: Tensor, x: &Tensor) -> Tensor {
    let shape = sum.shape();
    let mut sum = sum.into_raw();
    for_row_blocks(&mut sum, 1, |at, part| part.iter_mut().zip(&x.raw()[at..]).for_each(|(s, x)| *s += x));
    Tensor::cpu(sum, shape)
}

/// Sum of the rows of `dy`.
fn bias_gradient(dy: &Tensor) -> Tensor {
    let mut db = vec![0.0; dy.cols()];
    for row in dy.raw().chunks_exact(dy.cols()) {
        for (d, g) in db.iter_mut().zip(row) {
            *d += g;
        }
    }
    Tensor::cpu(db, [1, dy.cols()])
}

/// Columns `first..first + width` of `x`.
fn columns(x: &Tensor, first: usize, width: usize) -> Tensor {
    if width == x.cols() {
        return x.clone();
    }
    let mut out = vec![0.0; x.rows() * width];
    for_row_blocks(&mut out, width, |row, part| {
        for (i, to) in part.chunks_exact_mut(width).enumerate() {
            to.copy_from_slice(&x.raw()[(row + i) * x.cols() + first..][..width]);
        }
    });
    Tensor::cpu(out, [x.rows(), width])
}

/// `x W^T` as a burn expression.
pub(super) fn reference_linear(x: &burn::Tensor<2>, w: &burn::Tensor<2>) -> burn::Tensor<2> {
    x.clone().matmul(w.clone().transpose())
}

fn reference_lora(x: &burn::Tensor<2>, [a, b]: [&burn::Tensor<2>; 2], branch: Branch) -> [burn::Tensor<2>; 2] {
    let dropped = match branch.dropout {
        None => x.clone(),
        Some(d) => {
            let mut mask = vec![1.0; x.dims()[0] * x.dims()[1]];
            d.apply(&mut mask);
            x.clone() * reference::upload(mask, x.dims())
        }
    };
    let down = reference_linear(&dropped, a);
    [reference_linear(&down, b).mul_scalar(branch.scale), down]
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn weights(&self) -> Vec<usize> {
        let places = self.places().into_iter();
        places.flat_map(|p| std::iter::once(p.w).chain(p.low_rank.into_iter().flat_map(|(ab, _)| ab))).collect()
    }

    fn check(&self, inputs: &[&Tensor]) -> Result<()> {
        let (op, x) = (self.name(), inputs[0]);
        let mut width = 0;
        for part in self.places() {
            let w = inputs[part.w];
            ensure(x.cols() == w.cols(), op, "x [T, K] and w [N, K]", &[x, w])?;
            width += w.rows();
            if let Some(b) = part.bias {
                ensure(inputs[b].shape() == [1, w.rows()], op, "bias [1, N]", &[x, w, inputs[b]])?;
            }
            if let Some(([a, b], branch)) = part.low_rank {
                let (a, b) = (inputs[a], inputs[b]);
                let fits = a.cols() == x.cols() && b.shape() == [w.rows(), a.rows()];
                ensure(fits, op, "a [r, K] and b [N, r]", &[x, w, a, b])?;
                if let Some(d) = branch.dropout.filter(|d| !(0.0..1.0).contains(&d.probability)) {
                    return Err(Error::Domain { op, what: "dropout", value: d.probability, expected: "in [0, 1)" });
                }
            }
        }
        let Some(&residual) = self.residual(inputs) else { return Ok(()) };
        ensure(residual.shape() == [x.rows(), width], op, "a residual as wide as all maps together", &[x, residual])
    }

    /// Keeps the branches' `drop(x) A^T`, in order.
    fn cpu_forward(&self, inputs: &[&Tensor], _: &[bool]) -> (Tensor, Vec<Tensor>) {
        let (x, places) = (inputs[0], self.places());
        let width: usize = places.iter().map(|p| inputs[p.w].rows()).sum();
        let (mut y, store) = match self.residual(inputs) {
            Some(r) => (r.raw().to_vec(), Store::AddScaled(1.0)),
            None => (vec![0.0; x.rows() * width], Store::Set),
        };
        let (mut maps, mut branches, mut downs, mut first) = (vec![], vec![], vec![], 0);
        for part in &places {
            let w = inputs[part.w];
            maps.push(Map { x: x.raw(), w: w.raw(), dims: [w.rows(), w.cols()], first, store });
            if let Some(([a, _], branch)) = part.low_rank {
                let (a, x) = (inputs[a], dropped(branch.dropout, x));
                let mut down = vec![0.0; x.rows() * a.rows()];
                gemm::linear(&mut down, x.raw(), a.raw(), [x.rows(), a.rows(), a.cols()], Store::Set);
                downs.push(Tensor::cpu(down, [x.rows(), a.rows()]));
            }
            first += w.rows();
        }
        gemm::side_by_side(&mut y, &maps, [x.rows(), width]);
        let (mut first, mut kept) = (0, downs.iter());
        for part in &places {
            if let Some(b) = part.bias {
                add_bias(&mut y, width, first, inputs[b].raw());
            }
            if let Some(([_, b], branch)) = part.low_rank {
                let (b, down) = (inputs[b], kept.next().expect("one for every branch"));
                let store = Store::AddScaled(branch.scale);
                branches.push(Map { x: down.raw(), w: b.raw(), dims: [b.rows(), b.cols()], first, store });
            }
            first += inputs[part.w].rows();
        }
        gemm::side_by_side(&mut y, &branches, [x.rows(), width]);
        (Tensor::cpu(y, [x.rows(), width]), downs)
    }

    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>> {
        let (x, needs, inputs) = (&record.inputs[0], &record.needs, &record.inputs);
        let mut grads = vec![None; inputs.len()];
        let (mut dx, mut first, mut downs) = (None, 0, record.kept.iter());
        for part in self.places() {
            let w = &inputs[part.w];
            let dy = columns(grad, first, w.rows());
            first += w.rows();
            if let Some(([a_at, b_at], branch)) = part.low_rank {
                let (a, b, down) = (&inputs[a_at], &inputs[b_at], downs.next().expect("one for every branch"));
                let d_down = (needs[0] || needs[a_at]).then(|| input_gradient(None, &dy, b, branch.scale));
                if let Some(d_down) = &d_down {
                    if needs[0] {
                        let through = dropped(branch.dropout, &input_gradient(None, d_down, a, 1.0));
                        dx = Some(match dx {
                            None => through,
                            Some(dx) => add_onto(dx, &through),
                        });
                    }
                    grads[a_at] = needs[a_at].then(|| weight_gradient(d_down, &dropped(branch.dropout, x), a, 1.0));
                }
                grads[b_at] = needs[b_at].then(|| weight_gradient(&dy, down, b, branch.scale));
            }
            if needs[0] {
                dx = Some(input_gradient(dx, &dy, w, 1.0));
            }
            grads[part.w] = needs[part.w].then(|| weight_gradient(&dy, x, w, 1.0));
            if let Some(b) = part.bias {
                grads[b] = needs[b].then(|| bias_gradient(&dy));
            }
        }
        if self.residual && needs[1] {
            grads[1] = Some(grad.clone());
        }
        grads[0] = dx;
        grads
    }

    fn cuda_forward(&self, inputs: &[&Tensor], _: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        gpu::forward(self, inputs)
    }

    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        gpu::backward(self, record, grad)
    }

    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>> {
        let x = &inputs[0];
        let (mut outputs, mut downs) = (vec![], vec![]);
        for part in self.places() {
            let mut y = reference_linear(x, &inputs[part.w]);
            if let Some(b) = part.bias {
                y = y + inputs[b].clone();
            }
            if let Some(([a, b], branch)) = part.low_rank {
                let [up, down] = reference_lora(x, [&inputs[a], &inputs[b]], branch);
                y = y + up;
                downs.push(down);
            }
            outputs.push(y);
        }
        let y = burn::Tensor::cat(outputs, 1);
        let y = if let Some(r) = self.residual(inputs) { y + r.clone() } else { y };
        std::iter::once(y).chain(downs).collect()
    }
}

/// Adds `bias` to the columns `first..` of every row.
fn add_bias(y: &mut [f32], width: usize, first: usize, bias: &[f32]) {
    for row in y.chunks_exact_mut(width) {
        for (y, b) in row[first..].iter_mut().zip(bias) {
            *y += b;
        }
    }
}
