//! burn tensors: upload, download, and the gradient of any expression by burn's autodiff.

use burn::tensor::{Device as BurnDevice, TensorData};

use crate::capabilities::{Capabilities, HOST};

/// What burn's expressions can do; which kernel computes them depends on the batch.
pub(crate) const CAPABILITIES: Capabilities = HOST;

type B2 = burn::Tensor<2>;

/// The backend that this build's `Reference` runs on.
pub(crate) fn device() -> BurnDevice {
    BurnDevice::default()
}

/// Row-major host values to the device.
pub(crate) fn upload(values: Vec<f32>, shape: [usize; 2]) -> B2 {
    B2::from_data(TensorData::new(values, shape), &device())
}

/// Row-major values on the host.
pub(crate) fn download(t: B2) -> Vec<f32> {
    t.into_data().convert::<f32>().try_to_vec::<f32>().expect("converted to f32 in the line before")
}

/// A vector of indices on the device.
pub(crate) fn indices(values: impl IntoIterator<Item = usize>) -> burn::Tensor<1, burn::tensor::Int> {
    let values: Vec<i32> = values.into_iter().map(|v| i32::try_from(v).expect("index fits 31 bits")).collect();
    let len = values.len();
    burn::Tensor::from_data(TensorData::new(values, [len]), &device())
}

/// Gradients of `sum(f(inputs) * grad)` with respect to the inputs marked in `needs`.
///
/// The expression runs again with autodiff on: this path is the reference, not the fast one.
pub(crate) fn gradients(inputs: &[B2], needs: &[bool], grad: B2, f: impl Fn(&[B2]) -> B2) -> Vec<Option<B2>> {
    let leaves: Vec<B2> = inputs
        .iter()
        .zip(needs)
        .map(|(t, &need)| if need { t.clone().autodiff().require_grad() } else { t.clone().autodiff() })
        .collect();
    let grads = (f(&leaves) * grad.autodiff()).sum().backward();
    leaves.iter().zip(needs).map(|(t, &need)| if need { t.grad(&grads) } else { None }).collect()
}
