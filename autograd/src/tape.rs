//! The record of a forward pass, and the walk back over it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::op::{Op, Recorded, common_device, ensure};
use crate::{Error, Result, Tensor, TensorId};

/// A stretch of the forward pass that is run again during backward instead of being kept.
type Segment = Arc<dyn Fn(&mut Tape, &Tensor) -> Result<Tensor> + Send + Sync>;

enum Node {
    Op { op: Box<dyn Op>, inputs: Vec<Input>, needs: Vec<bool>, kept: Vec<Tensor>, output: TensorId },
    Checkpoint { segment: Segment, input: Tensor, output: TensorId },
}

/// What an op was given.
enum Input {
    Kept(Tensor),
    /// The output of the op recorded at `node`, which is cheap.
    Again {
        id: TensorId,
        node: usize,
    },
}

impl Input {
    fn id(&self) -> TensorId {
        match self {
            Self::Kept(tensor) => tensor.id(),
            Self::Again { id, .. } => *id,
        }
    }

    /// Its value; `nodes` are those before the op that has this input.
    fn value(&self, nodes: &[Node]) -> Result<Tensor> {
        let node = match self {
            Self::Kept(tensor) => return Ok(tensor.clone()),
            Self::Again { node, .. } => &nodes[*node],
        };
        let Node::Op { op, inputs, .. } = node else { unreachable!("only ops are cheap") };
        let inputs = inputs.iter().map(|input| input.value(nodes)).collect::<Result<Vec<_>>>()?;
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        Ok(op.forward(&inputs, &vec![false; inputs.len()])?.0)
    }
}

/// Records the ops whose result depends on a leaf that requires a gradient.
///
/// The caller owns it; without one ([`Tape::off`]) the same forward code records nothing and keeps nothing.
#[derive(Default)]
pub struct Tape {
    recording: bool,
    nodes: Vec<Node>,
    /// Watched leaves and everything computed from them.
    tracked: HashSet<TensorId>,
    leaves: HashSet<TensorId>,
    /// Outputs of cheap ops, and where those are in `nodes`: they are computed again instead of kept.
    cheap: HashMap<TensorId, usize>,
}

/// Gradients of the leaves that require one.
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

    /// Makes `leaf` a leaf whose gradient is computed (PyTorch's `requires_grad_`).
    pub fn require_grad(&mut self, leaf: &Tensor) {
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
            let inputs = inputs.iter().map(|&t| self.input(t)).collect();
            if op.is_cheap() {
                self.cheap.insert(output.id(), self.nodes.len());
            }
            let (op, kept, output) = (Box::new(op), kept.clone(), output.id());
            self.nodes.push(Node::Op { op, inputs, needs, kept, output });
        }
        Ok((output, kept))
    }

    fn input(&self, tensor: &Tensor) -> Input {
        let id = tensor.id();
        self.cheap.get(&id).map_or_else(|| Input::Kept(tensor.clone()), |&node| Input::Again { id, node })
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

    /// Bytes of what the record keeps beside its leaves and constants.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let mut bytes = |t: &Tensor| if seen.insert(t.id()) { t.bytes() } else { 0 };
        let kept = self.nodes.iter().map(|node| match node {
            Node::Op { inputs, needs, kept, .. } => {
                let own: usize = kept.iter().map(&mut bytes).sum();
                let computed = inputs.iter().zip(needs).filter_map(|(input, need)| match input {
                    Input::Kept(tensor) if *need && !self.leaves.contains(&tensor.id()) => Some(tensor),
                    _ => None,
                });
                own + computed.map(&mut bytes).sum::<usize>()
            }
            Node::Checkpoint { input, .. } => bytes(input),
        });
        kept.sum()
    }

    /// Gradients of the leaves that require one with respect to the sum of `root`'s values times `seed`.
    ///
    /// # Errors
    /// As [`Tape::backward_onto`].
    pub fn backward(self, root: &Tensor, seed: Tensor) -> Result<Gradients> {
        self.backward_onto(root, seed, Gradients::default())
    }

    /// As [`Tape::backward`], added to `sums` of earlier calls, so that no gradient lies in memory twice.
    ///
    /// Nodes are visited in reverse order of recording, so sums are always formed in the same order. Kept activations
    /// are freed as the walk passes them, and outputs of cheap ops ([`Op::is_cheap`]) computed again
    /// (<https://arxiv.org/abs/2205.05198>).
    ///
    /// # Errors
    /// [`Error::NotRecorded`] when no leaf that requires a gradient leads to `root`; otherwise what the ops refuse.
    pub fn backward_onto(self, root: &Tensor, seed: Tensor, sums: Gradients) -> Result<Gradients> {
        if !self.tracks(root) {
            return Err(Error::NotRecorded);
        }
        let mut grads = sums;
        common_device("backward", &[root, &seed])?;
        ensure(root.shape() == seed.shape(), "backward", "root and seed of one shape", &[root, &seed])?;
        grads.add(root.id(), seed)?;
        let Self { mut nodes, tracked, leaves, .. } = self;
        while let Some(node) = nodes.pop() {
            match node {
                Node::Op { op, inputs, needs, kept, output } => {
                    let Some(grad) = take(&mut grads, output, &leaves) else { continue };
                    let ids: Vec<TensorId> = inputs.iter().map(Input::id).collect();
                    let inputs = inputs.iter().map(|input| input.value(&nodes)).collect::<Result<_>>()?;
                    let found = op.backward(&Recorded { inputs, needs, kept }, &grad)?;
                    debug_assert_eq!(found.len(), ids.len(), "{} gradients", op.name());
                    for (id, grad) in ids.into_iter().zip(found) {
                        if let Some(grad) = grad {
                            grads.add(id, grad)?;
                        }
                    }
                }
                Node::Checkpoint { segment, input, output } => {
                    let Some(grad) = take(&mut grads, output, &leaves) else { continue };
                    // Whatever the segment uses of this tape gets its share: leaves, its input, values it captured.
                    let mut inner = Self { tracked: tracked.clone(), leaves: tracked.clone(), ..Self::recording() };
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

/// The finished gradient of a recorded value; a leaf that requires one keeps its own.
fn take(grads: &mut Gradients, id: TensorId, leaves: &HashSet<TensorId>) -> Option<Tensor> {
    if leaves.contains(&id) { grads.0.get(&id).cloned() } else { grads.0.remove(&id) }
}
