//! The record of a forward pass, and the walk back over it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::ops::{Op, Recorded, common_device, ensure};
use crate::{Error, Result, Tensor, TensorId};

/// A stretch of the forward pass that is run again during backward instead of being kept.
type Segment = Arc<dyn Fn(&mut Tape, &Tensor) -> Result<Tensor> + Send + Sync>;

enum Node {
    Op(Box<dyn Op>, Recorded),
    Checkpoint { segment: Segment, input: Tensor, output: TensorId },
}

/// Records the ops whose result depends on a watched tensor.
///
/// The caller owns it; without one ([`Tape::off`]) the same forward code records nothing and keeps nothing.
#[derive(Default)]
pub struct Tape {
    recording: bool,
    nodes: Vec<Node>,
    /// Watched leaves and everything computed from them.
    tracked: HashSet<TensorId>,
    leaves: HashSet<TensorId>,
}

/// Gradients of the watched leaves.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of `leaf`; `None` when the loss does not depend on it.
    #[must_use]
    pub fn get(&self, leaf: &Tensor) -> Option<&Tensor> {
        self.0.get(&leaf.id())
    }

    /// Takes the gradient of `leaf` out.
    pub fn remove(&mut self, leaf: &Tensor) -> Option<Tensor> {
        self.0.remove(&leaf.id())
    }

    fn add(&mut self, id: TensorId, grad: Tensor) -> Result<()> {
        let sum = match self.0.remove(&id) {
            Some(old) => old.accumulate(&grad)?,
            None => grad,
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

impl Tape {
    /// A tape that records.
    #[must_use]
    pub fn recording() -> Self {
        Self { recording: true, ..Self::default() }
    }

    /// A tape that records nothing: inference.
    #[must_use]
    pub fn off() -> Self {
        Self::default()
    }

    /// Asks for the gradient of `leaf`.
    pub fn watch(&mut self, leaf: &Tensor) {
        self.tracked.insert(leaf.id());
        self.leaves.insert(leaf.id());
    }

    /// Whether a gradient will be asked for `t`.
    #[must_use]
    pub fn tracks(&self, t: &Tensor) -> bool {
        self.recording && self.tracked.contains(&t.id())
    }

    /// Runs `op`; records it when one of `inputs` is tracked.
    ///
    /// # Errors
    /// What the op refuses.
    pub fn apply(&mut self, op: impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
        Ok(self.apply_keeping(op, inputs)?.0)
    }

    /// [`Tape::apply`], and what the op kept for its backward pass (statistics, for the losses).
    ///
    /// # Errors
    /// What the op refuses.
    pub fn apply_keeping(&mut self, op: impl Op, inputs: &[&Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        let needs: Vec<bool> = inputs.iter().map(|t| self.tracks(t)).collect();
        let (output, kept) = op.forward(inputs, &needs)?;
        if needs.contains(&true) {
            self.tracked.insert(output.id());
            let inputs = inputs.iter().map(|&t| t.clone()).collect();
            let record = Recorded { inputs, needs, kept: kept.clone(), output: output.clone() };
            self.nodes.push(Node::Op(Box::new(op), record));
        }
        Ok((output, kept))
    }

    /// Runs `segment` on `input` keeping only `input` and what the segment captures; backward runs it a second time.
    ///
    /// # Errors
    /// What the segment's ops refuse.
    pub fn checkpoint(
        &mut self,
        input: &Tensor,
        segment: impl Fn(&mut Self, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Result<Tensor> {
        if !self.recording || self.tracked.is_empty() {
            return segment(&mut Self::off(), input);
        }
        let output = segment(&mut Self::off(), input)?;
        self.tracked.insert(output.id());
        let (segment, input) = (Arc::new(segment), input.clone());
        self.nodes.push(Node::Checkpoint { segment, input, output: output.id() });
        Ok(output)
    }

    /// Bytes of what the record keeps beside its leaves: outputs of ops, and what they need of their own.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let mut bytes = |t: &Tensor| if seen.insert(t.id()) { t.bytes() } else { 0 };
        let kept = self.nodes.iter().map(|node| match node {
            Node::Op(_, record) => {
                let own: usize = record.kept.iter().map(&mut bytes).sum();
                let computed = record
                    .inputs
                    .iter()
                    .zip(&record.needs)
                    .filter(|(input, need)| **need && !self.leaves.contains(&input.id()));
                own + bytes(&record.output) + computed.map(|(input, _)| bytes(input)).sum::<usize>()
            }
            Node::Checkpoint { input, .. } => bytes(input),
        });
        kept.sum()
    }

    /// Gradients of the watched leaves with respect to the sum of `root`'s values times `seed`.
    ///
    /// # Errors
    /// As [`Tape::backward_onto`].
    pub fn backward(self, root: &Tensor, seed: Tensor) -> Result<Gradients> {
        self.backward_onto(root, seed, Gradients::default())
    }

    /// As [`Tape::backward`], added to `sums` of earlier calls, so that no gradient lies in memory twice.
    ///
    /// Nodes are visited in reverse order of recording, so sums are always formed in the same order. Kept activations
    /// are freed as the walk passes them.
    ///
    /// # Errors
    /// [`Error::NotRecorded`] when nothing watched leads to `root`; otherwise what the ops refuse.
    pub fn backward_onto(self, root: &Tensor, seed: Tensor, sums: Gradients) -> Result<Gradients> {
        if !self.tracks(root) {
            return Err(Error::NotRecorded);
        }
        let mut grads = sums;
        common_device("backward", &[root, &seed])?;
        ensure(root.shape() == seed.shape(), "backward", "root and seed of one shape", &[root, &seed])?;
        grads.add(root.id(), seed)?;
        let Self { nodes, tracked, leaves, .. } = self;
        for node in nodes.into_iter().rev() {
            match node {
                Node::Op(op, record) => {
                    let Some(grad) = take(&mut grads, record.output.id(), &leaves) else { continue };
                    let inputs = op.backward(&record, &grad)?;
                    debug_assert_eq!(inputs.len(), record.inputs.len(), "{} gradients", op.name());
                    for (input, grad) in record.inputs.iter().zip(inputs) {
                        if let Some(grad) = grad {
                            grads.add(input.id(), grad)?;
                        }
                    }
                }
                Node::Checkpoint { segment, input, output } => {
                    let Some(grad) = take(&mut grads, output, &leaves) else { continue };
                    // Whatever the segment uses of this tape gets its share: leaves, its input, values it captured.
                    let mut inner =
                        Self { recording: true, tracked: tracked.clone(), leaves: tracked.clone(), nodes: vec![] };
                    let again = segment(&mut inner, &input)?;
                    if inner.tracks(&again) {
                        for (id, grad) in inner.backward(&again, grad)?.0 {
                            grads.add(id, grad)?;
                        }
                    }
                }
            }
        }
        grads.0.retain(|id, _| leaves.contains(id));
        Ok(grads)
    }
}

/// The finished gradient of a recorded value; a watched value keeps its own.
fn take(grads: &mut Gradients, id: TensorId, leaves: &HashSet<TensorId>) -> Option<Tensor> {
    if leaves.contains(&id) { grads.0.get(&id).cloned() } else { grads.0.remove(&id) }
}
