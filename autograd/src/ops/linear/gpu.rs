//! Linear maps on a GPU: cuBLASLt on the columns of one output.

use std::ops::Range;

use super::dropout::dropped_array;
use super::{Branch, Linear, LowRank, Places, Projection, Recorded, linear_of};
use crate::cuda::linear::{
    Accumulate, Columns, SKINNY_ROWS, Up, input_gradient, low_rank_up, low_rank_up_gated, product, product_aside,
    weight_gradient,
};
use crate::cuda::rows::{add, column_sums};
use crate::cuda::side_stream::SideStream;
use crate::cuda::skinny_gemm::ROWS;
use crate::cuda::{Array, DType};
use crate::ops::swiglu;
use crate::{Result, Tape, Tensor};

/// A weight's rows are as long as they are apart.
fn whole(w: &Tensor) -> Columns<'_> {
    Columns::all(w.array(), w.cols())
}

/// Keeps the branches' `drop(x) A^T` side by side, when there are branches.
pub(super) fn forward(op: &Linear, inputs: &[&Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
    let (y, down) = halves(op, inputs)?;
    if let Some(down) = &down {
        add_branches(y.array(), down, &op.places(), inputs)?;
    }
    Ok((y, down.into_iter().collect()))
}

/// [`swiglu`] of the maps, for which no tape asks.
pub(super) fn gated(op: &Linear, inputs: &[&Tensor]) -> Result<Tensor> {
    let (y, down) = halves(op, inputs)?;
    finish(y, down.as_ref(), &op.places(), inputs, true)
}

/// The maps without their branches, and `drop(x) A^T` of these.
fn halves(op: &Linear, inputs: &[&Tensor]) -> Result<(Tensor, Option<Tensor>)> {
    let (x, places) = (inputs[0], op.places());
    let (t, k) = (x.rows(), x.cols());
    let stride: usize = places.iter().map(|p| inputs[p.w].rows()).sum();
    let y = Array::uninit(x.array().gpu(), t * stride, DType::Bf16)?;
    let branches = Branches::of(&places);
    let aside = branches.down_aside(inputs)?;
    let onto = op.residual(inputs).map_or(Accumulate::Nothing, |r| Accumulate::Other(r.array()));
    if let Some((w, bias)) = joined(&places, inputs) {
        let w = Columns::all(&w, k);
        product(Columns::all(&y, stride), onto, [whole(x), w], bias.as_ref(), [t, stride, k], 1.0)?;
    } else {
        let mut first = 0;
        for part in &places {
            let (w, columns) = (inputs[part.w], Columns { array: &y, first, stride });
            let bias = part.bias.map(|b| inputs[b].array());
            product(columns, onto, [whole(x), whole(w)], bias, [t, w.rows(), k], 1.0)?;
            first += w.rows();
        }
    }
    let y = Tensor::cuda(y, [t, stride]);
    if branches.is_empty() {
        return Ok((y, None));
    }
    let down = match aside {
        None => branches.down(inputs)?,
        Some((aside, down)) => aside.join().map(|()| down)?,
    };
    Ok((y, Some(down)))
}

/// Adds the branches to `y`, and takes [`swiglu`] of that when there is a `gate`: few rows of both take one kernel.
pub(super) fn finish(
    y: Tensor,
    down: Option<&Tensor>,
    places: &[Places],
    inputs: &[&Tensor],
    gate: bool,
) -> Result<Tensor> {
    if let Some(down) = down {
        let [t, width] = y.shape();
        let maps = ups(places, inputs);
        let pair = maps.as_array().filter(|[a, b]| gate && few_ups(&maps, y.array(), t) && a.columns == b.columns);
        if let Some(&maps) = pair {
            let out = Array::uninit(y.array().gpu(), t * width / 2, DType::Bf16)?;
            low_rank_up_gated(&out, y.array(), down.array(), maps, t)?;
            return Ok(Tensor::cuda(out, [t, width / 2]));
        }
        add_branches(y.array(), down, places, inputs)?;
    }
    if gate { swiglu(&mut Tape::off(), &y) } else { Ok(y) }
}

/// Adds the branches of `maps` to the `rows` of y, which are those of x.
pub(super) fn add_low_rank(y: &Tensor, x: &Tensor, rows: Range<usize>, maps: &[Projection<'_>]) -> Result<()> {
    let part = |t: &Tensor| {
        let shape @ [count, width] = [rows.len(), t.cols()];
        Tensor::cuda(t.array().part(rows.start * width, count * width), shape)
    };
    let (x, y) = (part(x), part(y));
    let (op, inputs) = linear_of(&x, maps, None);
    let places = op.places();
    let down = Branches::of(&places).down(&inputs)?;
    add_branches(y.array(), &down, &places, &inputs)
}

/// The parts that have a branch: places of a and b, and the rest.
pub(super) struct Branches(Vec<([usize; 2], Branch)>);

impl Branches {
    pub(super) fn of(places: &[Places]) -> Self {
        Self(places.iter().filter_map(|p| p.low_rank).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ranks of all branches together.
    pub(super) fn ranks<T: std::borrow::Borrow<Tensor>>(&self, inputs: &[T]) -> usize {
        self.0.iter().map(|([a, _], _)| inputs[*a].borrow().rows()).sum()
    }

    /// All A as one matrix where they lie behind each other and see the same input.
    pub(super) fn joined<T: std::borrow::Borrow<Tensor>>(&self, inputs: &[T]) -> Option<Array> {
        if self.0.iter().any(|(_, branch)| branch.dropout.is_some()) {
            return None;
        }
        Array::as_one(&self.0.iter().map(|([a, _], _)| inputs[*a].borrow().array()).collect::<Vec<_>>())
    }

    /// `x A^T` of every branch on the second stream, to run beside the product with W, where there are so few rows that
    /// both together do not fill the GPU.
    fn down_aside(&self, inputs: &[&Tensor]) -> Result<Option<(SideStream, Tensor)>> {
        let (x, ranks) = (inputs[0], self.ranks(inputs));
        let ([t, k], gpu) = (x.shape(), x.array().gpu());
        let few = t > ROWS && t <= SKINNY_ROWS && !gpu.is_deterministic();
        let Some(a) = self.joined(inputs).filter(|_| few) else { return Ok(None) };
        let down = Array::uninit(gpu, t * ranks, DType::Bf16)?;
        let aside = SideStream::begin(gpu)?;
        product_aside(Columns::all(&down, ranks), [whole(x), Columns::all(&a, k)], [t, ranks, k])?;
        Ok(Some((aside, Tensor::cuda(down, [t, ranks]))))
    }

    /// `drop(x) A^T` of every branch, side by side.
    fn down(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let (x, ranks) = (inputs[0], self.ranks(inputs));
        let (t, k) = (x.rows(), x.cols());
        let down = Array::uninit(x.array().gpu(), t * ranks, DType::Bf16)?;
        if let Some(a) = self.joined(inputs) {
            let operands = [whole(x), Columns::all(&a, k)];
            product(Columns::all(&down, ranks), Accumulate::Nothing, operands, None, [t, ranks, k], 1.0)?;
            return Ok(Tensor::cuda(down, [t, ranks]));
        }
        let mut first = 0;
        for ([a, _], branch) in &self.0 {
            let (a, input) = (inputs[*a], dropped_array(branch.dropout, x.array())?);
            let columns = Columns { array: &down, first, stride: ranks };
            product(columns, Accumulate::Nothing, [Columns::all(&input, k), whole(a)], None, [t, a.rows(), k], 1.0)?;
            first += a.rows();
        }
        Ok(Tensor::cuda(down, [t, ranks]))
    }
}

/// The second halves of all branches.
fn ups<'a>(places: &[Places], inputs: &[&'a Tensor]) -> Vec<Up<'a>> {
    let up = |part: &Places| match part.low_rank {
        None => Up { b: None, columns: inputs[part.w].rows(), rank: 0, scale: 0.0 },
        Some(([_, b], branch)) => {
            let b = inputs[b];
            Up { b: Some(b.array()), columns: b.rows(), rank: b.cols(), scale: branch.scale }
        }
    };
    places.iter().map(up).collect()
}

/// Whether one kernel takes all of `maps` for `t` rows.
fn few_ups(maps: &[Up<'_>], y: &Array, t: usize) -> bool {
    let whole_vectors = maps.iter().all(|m| m.columns.is_multiple_of(8) && m.rank.is_multiple_of(8));
    let few = t <= SKINNY_ROWS || y.gpu().is_deterministic();
    few && maps.len() <= 3 && whole_vectors
}

/// Adds `scale * down B^T` of every branch to its columns of y.
fn add_branches(y: &Array, down: &Tensor, places: &[Places], inputs: &[&Tensor]) -> Result<()> {
    let [t, ranks] = down.shape();
    let maps = ups(places, inputs);
    if few_ups(&maps, y, t) {
        return low_rank_up(y, down.array(), &maps, t);
    }
    let stride: usize = maps.iter().map(|m| m.columns).sum();
    let (mut first, mut rank) = (0, 0);
    for map in &maps {
        if let Some(b) = map.b {
            let operands = [Columns { array: down.array(), first: rank, stride: ranks }, Columns::all(b, map.rank)];
            let columns = Columns { array: y, first, stride };
            product(columns, Accumulate::Output, operands, None, [t, map.columns, map.rank], map.scale)?;
        }
        (first, rank) = (first + map.columns, rank + map.rank);
    }
    Ok(())
}

/// The parts' weights, and their biases, as one matrix where they lie behind each other.
pub(super) fn joined(places: &[Places], inputs: &[&Tensor]) -> Option<(Array, Option<Array>)> {
    let weights: Vec<&Array> = places.iter().map(|p| inputs[p.w].array()).collect();
    let biases: Vec<&Array> = places.iter().filter_map(|p| p.bias).map(|b| inputs[b].array()).collect();
    let bias = match biases.len() {
        0 => None,
        n if n == places.len() => Some(Array::as_one(&biases)?),
        _ => return None,
    };
    Some((Array::as_one(&weights)?, bias))
}

/// The sum that becomes the gradient of x.
struct InputGradient {
    sum: Option<Array>,
    len: usize,
}

impl InputGradient {
    /// Adds `factor * dy W`.
    fn add(&mut self, dy: Columns<'_>, w: Columns<'_>, dims: [usize; 3]) -> Result<()> {
        let fresh = self.sum.is_none();
        let sum = match self.sum.take() {
            Some(sum) => sum,
            None => Array::uninit(dy.array.gpu(), self.len, DType::Bf16)?,
        };
        let onto = if fresh { Accumulate::Nothing } else { Accumulate::Output };
        input_gradient(Columns::all(&sum, dims[2]), onto, [dy, w], dims, 1.0)?;
        self.sum = Some(sum);
        Ok(())
    }
}

pub(super) fn backward(op: &Linear, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (inputs, needs, places) = (&record.inputs, &record.needs, op.places());
    let x = &inputs[0];
    let (t, k) = (x.rows(), x.cols());
    let mut grads = vec![None; inputs.len()];
    let mut dx = InputGradient { sum: None, len: t * k };
    let weights: Vec<&Array> = places.iter().map(|p| inputs[p.w].array()).collect();
    let joined = Array::as_one(&weights);
    if let Some(w) = joined.as_ref().filter(|_| needs[0]) {
        let dy = Columns::all(grad.array(), grad.cols());
        dx.add(dy, Columns::all(w, k), [t, grad.cols(), k])?;
    }
    let biased = places.iter().any(|p| p.bias.is_some_and(|b| needs[b]));
    let sums = biased.then(|| column_sums(grad.array(), [t, grad.cols()])).transpose()?;
    let mut first = 0;
    for part in &places {
        let w = &inputs[part.w];
        let n = w.rows();
        let dy = Columns { array: grad.array(), first, stride: grad.cols() };
        if needs[0] && joined.is_none() {
            dx.add(dy, whole(w), [t, n, k])?;
        }
        if needs[part.w] {
            grads[part.w] = Some(weight_grad([dy, whole(x)], [t, n, k], 1.0)?);
        }
        if let (Some(bias), Some(sums)) = (part.bias.filter(|&b| needs[b]), &sums) {
            grads[bias] = Some(Tensor::cuda(sums.part(first, n), [1, n]));
        }
        first += n;
    }
    if !record.kept.is_empty() {
        branch_gradients(record, &places, grad, &mut dx, &mut grads)?;
    }
    if op.residual && needs[1] {
        grads[1] = Some(grad.clone());
    }
    grads[0] = dx.sum.map(|dx| Tensor::cuda(dx, x.shape()));
    Ok(grads)
}

/// Gradients of every a and b, and the branches' share of the gradient of x.
fn branch_gradients(
    record: &Recorded,
    places: &[Places],
    grad: &Tensor,
    dx: &mut InputGradient,
    grads: &mut [Option<Tensor>],
) -> Result<()> {
    let (inputs, needs, down) = (&record.inputs, &record.needs, &record.kept[0]);
    let (x, [t, ranks]) = (&inputs[0], down.shape());
    let k = x.cols();
    let d_down = Array::uninit(x.array().gpu(), t * ranks, DType::Bf16)?;
    let (mut first, mut rank) = (0, 0);
    for part in places {
        let dy = Columns { array: grad.array(), first, stride: grad.cols() };
        if let Some(([_, b_at], branch)) = part.low_rank {
            let b = &inputs[b_at];
            let dims @ [_, _, r] = [t, b.rows(), b.cols()];
            let at = |array| Columns { array, first: rank, stride: ranks };
            if needs[b_at] {
                grads[b_at] = Some(weight_grad([dy, at(down.array())], dims, branch.scale)?);
            }
            input_gradient(at(&d_down), Accumulate::Nothing, [dy, whole(b)], dims, branch.scale)?;
            rank += r;
        }
        first += inputs[part.w].rows();
    }
    let branches = Branches::of(places);
    let all = Columns::all(&d_down, ranks);
    if let Some(a) = branches.joined(inputs) {
        if branches.0.iter().any(|([a, _], _)| needs[*a]) {
            let da = weight_grad([all, whole(x)], [t, ranks, k], 1.0)?;
            let mut rank = 0;
            for ([a, _], _) in &branches.0 {
                let r = inputs[*a].rows();
                grads[*a] = needs[*a].then(|| Tensor::cuda(da.array().part(rank * k, r * k), [r, k]));
                rank += r;
            }
        }
        return if needs[0] { dx.add(all, Columns::all(&a, k), [t, ranks, k]) } else { Ok(()) };
    }
    let mut rank = 0;
    for ([a_at, _], branch) in &branches.0 {
        let (a, columns) = (&inputs[*a_at], Columns { array: &d_down, first: rank, stride: ranks });
        let dims @ [_, r, _] = [t, a.rows(), k];
        if needs[*a_at] {
            let input = dropped_array(branch.dropout, x.array())?;
            grads[*a_at] = Some(weight_grad([columns, Columns::all(&input, k)], dims, 1.0)?);
        }
        if needs[0] {
            through_dropout(dx, branch, columns, a, dims)?;
        }
        rank += r;
    }
    Ok(())
}

/// Adds a branch's share of the gradient of x, which went through dropout.
fn through_dropout(
    dx: &mut InputGradient,
    branch: &Branch,
    d_down: Columns<'_>,
    a: &Tensor,
    dims @ [t, _, k]: [usize; 3],
) -> Result<()> {
    if branch.dropout.is_none() {
        return dx.add(d_down, whole(a), dims);
    }
    let through = Array::uninit(d_down.array.gpu(), t * k, DType::Bf16)?;
    input_gradient(Columns::all(&through, k), Accumulate::Nothing, [d_down, whole(a)], dims, 1.0)?;
    let through = dropped_array(branch.dropout, &through)?;
    dx.sum = Some(match dx.sum.take() {
        Some(sum) => add(&sum, &through)?,
        None => through,
    });
    Ok(())
}

/// `W + scale * B A`, rounded to the weight's precision, in `into` or in new memory.
pub(super) fn merge(weight: &Tensor, branch: &LowRank<'_>, into: Option<&Tensor>) -> Result<Tensor> {
    let [n, k] = weight.shape();
    let out = match into {
        Some(tensor) => tensor.clone(),
        None => Tensor::cuda(Array::uninit(weight.array().gpu(), n * k, DType::Bf16)?, [n, k]),
    };
    let dims = [n, branch.a.rows(), k];
    let operands = [whole(branch.b), whole(branch.a)];
    input_gradient(whole(&out), Accumulate::Other(weight.array()), operands, dims, branch.scale)?;
    Ok(out)
}

fn weight_grad(dy_x: [Columns<'_>; 2], [t, n, k]: [usize; 3], factor: f32) -> Result<Tensor> {
    let dw = Array::uninit(dy_x[0].array.gpu(), n * k, DType::F32)?;
    weight_gradient(&dw, Accumulate::Nothing, dy_x, [t, n, k], factor)?;
    Ok(Tensor::cuda(dw, [n, k]))
}
