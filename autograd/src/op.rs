//! What an op is: shapes, forward and backward on every device, and what it leaves on the tape.

use crate::{Device, Error, Result, Tensor, reference};

/// What an op leaves on the tape.
pub struct Recorded {
    /// Its inputs.
    pub inputs: Vec<Tensor>,
    /// Which of them want a gradient.
    pub needs: Vec<bool>,
    /// What forward kept for backward.
    pub kept: Vec<Tensor>,
}

/// A differentiable op. There is no default for any direction: an op without a gradient does not compile.
pub trait Op: Send + 'static {
    /// Its name in errors and in the op table.
    fn name(&self) -> &'static str;

    /// Positions of the inputs that are multiplied by, so that `Cpu` wants them in panels; all others are plain rows.
    fn weights(&self) -> Vec<usize>;

    /// Whether its output is computed again on the way back instead of kept: the op only passes its bytes once, so that
    /// this costs little time, and gives the same bits. Its inputs are kept then.
    fn is_cheap(&self) -> bool {
        false
    }

    /// Shapes and ranges of the inputs.
    ///
    /// # Errors
    /// Names what does not fit.
    fn check(&self, inputs: &[&Tensor]) -> Result<()>;

    /// Native forward: the output, and what backward will want (nothing when no entry of `needs` is set).
    fn cpu_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> (Tensor, Vec<Tensor>);

    /// Native backward: one gradient for every input that needs one, in the layout of that input.
    fn cpu_backward(&self, record: &Recorded, grad: &Tensor) -> Vec<Option<Tensor>>;

    /// Forward on a GPU, as [`Op::cpu_forward`].
    ///
    /// # Errors
    /// A device that is out of memory or lost.
    fn cuda_forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Vec<Tensor>)>;

    /// Backward on a GPU: gradients of activations in bf16, of weights in f32.
    ///
    /// # Errors
    /// A device that is out of memory or lost.
    fn cuda_backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>>;

    /// The op as a burn expression: the output and, past it, what [`Op::cpu_forward`] keeps.
    fn reference(&self, inputs: &[burn::Tensor<2>]) -> Vec<burn::Tensor<2>>;

    /// [`Op::check`], and that devices and layouts are right. The device of the inputs.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn check_all(&self, inputs: &[&Tensor]) -> Result<Device> {
        let device = common_device(self.name(), inputs)?;
        check_layouts(self.name(), inputs, &self.weights())?;
        self.check(inputs)?;
        Ok(device)
    }

    /// Runs on the device of the inputs.
    ///
    /// # Errors
    /// Operands that do not fit.
    fn forward(&self, inputs: &[&Tensor], needs: &[bool]) -> Result<(Tensor, Vec<Tensor>)> {
        Ok(match self.check_all(inputs)? {
            Device::Cpu => self.cpu_forward(inputs, needs),
            Device::Cuda(_) => self.cuda_forward(inputs, needs)?,
            Device::Reference => {
                let inputs: Vec<_> = inputs.iter().map(|t| t.burn()).collect();
                let mut values = self.reference(&inputs).into_iter().map(Tensor::reference);
                let output = values.next().expect("an op has an output");
                (output, values.collect())
            }
        })
    }

    /// Gradients of the inputs, on the device they live on.
    ///
    /// # Errors
    /// A gradient on another device.
    fn backward(&self, record: &Recorded, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(match common_device(self.name(), &[&record.inputs[0], grad])? {
            Device::Cpu => self.cpu_backward(record, grad),
            Device::Cuda(_) => self.cuda_backward(record, grad)?,
            Device::Reference => {
                let inputs: Vec<_> = record.inputs.iter().map(Tensor::burn).collect();
                let grads =
                    reference::gradients(&inputs, &record.needs, grad.burn(), |x| self.reference(x).swap_remove(0));
                grads.into_iter().map(|g| g.map(Tensor::reference)).collect()
            }
        })
    }
}

/// The device that all operands share.
pub(crate) fn common_device(op: &'static str, inputs: &[&Tensor]) -> Result<Device> {
    let device = inputs[0].device();
    match inputs.iter().find(|t| t.device() != device) {
        None => Ok(device),
        Some(other) => Err(Error::DeviceMismatch { op, left: device.to_string(), right: other.device().to_string() }),
    }
}

/// Fails with the operands' shapes unless `fits`.
pub(crate) fn ensure(fits: bool, op: &'static str, what: &'static str, inputs: &[&Tensor]) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::Shape { op, what, got: inputs.iter().map(|t| t.shape()).collect() }) }
}

/// Fails unless the operands at `weights` have the layout that their device multiplies by, and all others plain rows.
pub(crate) fn check_layouts(op: &'static str, inputs: &[&Tensor], weights: &[usize]) -> Result<()> {
    use crate::Layout::{Packed, Rows};
    for (index, input) in inputs.iter().enumerate() {
        let want = if weights.contains(&index) && input.device() == Device::Cpu { Packed } else { Rows };
        if input.layout() != want {
            return Err(Error::Layout {
                op,
                index,
                expected: if want == Packed { "a weight (panels)" } else { "rows" },
            });
        }
    }
    Ok(())
}

/// Fails unless `index` is below `limit`.
pub(crate) fn ensure_index(op: &'static str, what: &'static str, index: usize, limit: usize) -> Result<()> {
    if index < limit { Ok(()) } else { Err(Error::Index { op, what, index, limit }) }
}
