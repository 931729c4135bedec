//! Linear maps on a GPU: cuBLASLt on the columns of one output.

use super::dropout::dropped_array;
use super::{Linear, Places, Recorded};
use crate::cuda::linear::{Columns, Onto, input_gradient, product, weight_gradient};
use crate::cuda::rows::{add, column_sums};
use crate::cuda::{Array, DType};
use crate::{Result, Tensor};

/// A weight's rows are as long as they are apart.
fn whole(w: &Tensor) -> Columns<'_> {
    Columns::all(w.array(), w.cols())
}

/// Keeps the branches' `drop(x) A^T`, in order.
pub(super) fn forward(op: &Linear, inputs: &[&Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
    let (x, places) = (inputs[0], op.places());
    let (t, k) = (x.rows(), x.cols());
    let stride: usize = places.iter().map(|p| inputs[p.w].rows()).sum();
    let y = Array::uninit(x.array().gpu(), t * stride, DType::Bf16)?;
    let residual = op.residual(inputs).map(|r| r.array());
    let onto = residual.map_or(Onto::Nothing, Onto::Other);
    let (mut first, mut downs) = (0, vec![]);
    let joined = joined(&places, inputs);
    if let Some((w, bias)) = &joined {
        let w = Columns::all(w, k);
        product(Columns::all(&y, stride), onto, [whole(x), w], bias.as_ref(), [t, stride, k], 1.0)?;
    }
    for part in &places {
        let w = inputs[part.w];
        let columns = Columns { array: &y, first, stride };
        if joined.is_none() {
            let bias = part.bias.map(|b| inputs[b].array());
            product(columns, onto, [whole(x), whole(w)], bias, [t, w.rows(), k], 1.0)?;
        }
        if let Some(([a, b], branch)) = part.low_rank {
            let (a, b) = (inputs[a], inputs[b]);
            let r = a.rows();
            let down = Array::uninit(y.gpu(), t * r, DType::Bf16)?;
            let input = dropped_array(branch.dropout, x.array())?;
            let input = Columns::all(&input, k);
            product(Columns::all(&down, r), Onto::Nothing, [input, whole(a)], None, [t, r, k], 1.0)?;
            let dims = [t, w.rows(), r];
            product(columns, Onto::Output, [Columns::all(&down, r), whole(b)], None, dims, branch.scale)?;
            downs.push(Tensor::cuda(down, [t, r]));
        }
        first += w.rows();
    }
    Ok((Tensor::cuda(y, [t, stride]), downs))
}

/// The parts' weights, and their biases, as one matrix where they lie behind each other.
fn joined(places: &[Places], inputs: &[&Tensor]) -> Option<(Array, Option<Array>)> {
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
        let onto = if fresh { Onto::Nothing } else { Onto::Output };
        input_gradient(Columns::all(&sum, dims[2]), onto, [dy, w], dims, 1.0)?;
        self.sum = Some(sum);
        Ok(())
    }
}

pub(super) fn backward(op: &Linear, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
    let (inputs, needs) = (&record.inputs, &record.needs);
    let x = &inputs[0];
    let (t, k) = (x.rows(), x.cols());
    let mut grads = vec![None; inputs.len()];
    let mut dx = InputGradient { sum: None, len: t * k };
    let (mut first, mut downs) = (0, record.kept.iter());
    let mut sums = None;
    let weights: Vec<&Array> = op.places().iter().map(|p| inputs[p.w].array()).collect();
    let joined = Array::as_one(&weights).filter(|_| needs[0]);
    if let Some(w) = &joined {
        let dy = Columns::all(grad.array(), grad.cols());
        dx.add(dy, Columns::all(w, k), [t, grad.cols(), k])?;
    }
    for part in op.places() {
        let w = &inputs[part.w];
        let n = w.rows();
        let dy = Columns { array: grad.array(), first, stride: grad.cols() };
        if needs[0] && joined.is_none() {
            dx.add(dy, whole(w), [t, n, k])?;
        }
        if needs[part.w] {
            grads[part.w] = Some(weight_grad([dy, whole(x)], [t, n, k], 1.0)?);
        }
        if let Some(bias) = part.bias.filter(|&b| needs[b]) {
            let all = match sums.take() {
                Some(all) => all,
                None => column_sums(grad.array(), [t, grad.cols()])?,
            };
            grads[bias] = Some(Tensor::cuda(all.part(first, n), [1, n]));
            sums = Some(all);
        }
        if part.low_rank.is_some() {
            let down = downs.next().expect("one for every branch");
            branch_gradients(record, &part, dy, down, &mut dx, &mut grads)?;
        }
        first += n;
    }
    if op.residual && needs[1] {
        grads[1] = Some(grad.clone());
    }
    grads[0] = dx.sum.map(|dx| Tensor::cuda(dx, x.shape()));
    Ok(grads)
}

/// Gradients of a and b, and the branch's share of the gradient of x.
fn branch_gradients(
    record: &Recorded,
    part: &Places,
    dy: Columns<'_>,
    down: &Tensor,
    dx: &mut InputGradient,
    grads: &mut [Option<Tensor>],
) -> Result<()> {
    let Some(([a_at, b_at], branch)) = part.low_rank else { return Ok(()) };
    let (inputs, needs) = (&record.inputs, &record.needs);
    let (x, a, b) = (&inputs[0], &inputs[a_at], &inputs[b_at]);
    let [t, n, k, r] = [x.rows(), b.rows(), x.cols(), a.rows()];
    if needs[b_at] {
        grads[b_at] = Some(weight_grad([dy, whole(down)], [t, n, r], branch.scale)?);
    }
    if !(needs[0] || needs[a_at]) {
        return Ok(());
    }
    let d_down = Array::uninit(x.array().gpu(), t * r, DType::Bf16)?;
    input_gradient(Columns::all(&d_down, r), Onto::Nothing, [dy, whole(b)], [t, n, r], branch.scale)?;
    let d_down = Columns::all(&d_down, r);
    if needs[a_at] {
        let input = dropped_array(branch.dropout, x.array())?;
        grads[a_at] = Some(weight_grad([d_down, Columns::all(&input, k)], [t, r, k], 1.0)?);
    }
    if !needs[0] {
        return Ok(());
    }
    if branch.dropout.is_none() {
        return dx.add(d_down, whole(a), [t, r, k]);
    }
    let through = Array::uninit(x.array().gpu(), t * k, DType::Bf16)?;
    input_gradient(Columns::all(&through, k), Onto::Nothing, [d_down, whole(a)], [t, r, k], 1.0)?;
    let through = dropped_array(branch.dropout, &through)?;
    dx.sum = Some(match dx.sum.take() {
        Some(sum) => add(&sum, &through)?,
        None => through,
    });
    Ok(())
}

fn weight_grad(dy_x: [Columns<'_>; 2], [t, n, k]: [usize; 3], factor: f32) -> Result<Tensor> {
    let dw = Array::uninit(dy_x[0].array.gpu(), n * k, DType::F32)?;
    weight_gradient(&dw, Onto::Nothing, dy_x, [t, n, k], factor)?;
    Ok(Tensor::cuda(dw, [n, k]))
}
