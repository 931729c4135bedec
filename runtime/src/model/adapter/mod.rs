//! Low-rank adapters in PEFT's file format.

mod config;
mod encoded;
mod info;
mod lora;
mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use autograd::ops::{Dropout, LoraModule, LoraModules, LowRank};
use autograd::rng::uniform;
use autograd::{Device, Tensor};

use self::info::AdapterInfo;
pub use self::lora::LoraConfig;
use super::{Layer, Layout, Linear, ParamId};
use crate::config::ModelConfig;
use crate::weights::{SafetensorsWeights, WeightSource, check_finite};
use crate::{Error, Result, sums};

/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";

/// A and B of one projection's LoRA adapter.
#[derive(Debug, Clone)]
pub struct LoraWeights {
    /// Path of the projection in the model.
    pub module: String,
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub scale: f32,
}

impl LoraWeights {
    /// The argument of the ops.
    #[must_use]
    pub fn low_rank(&self, dropout: Option<Dropout>) -> LowRank<'_> {
        LowRank { a: &self.a, b: &self.b, scale: self.scale, dropout }
    }
}

/// A LoRA adapter: A and B of a model's projections. Clones share the tensors.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// By the weight that they are on.
    pub modules: BTreeMap<ParamId, LoraWeights>,
}

/// Rank of an adapter on a projection, and the shape `[out, in]` of its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoraShape {
    /// The projection.
    pub(crate) linear: Linear,
    /// Its rank.
    pub(crate) rank: usize,
    /// Rows and columns of its weight.
    pub(crate) shape: [usize; 2],
}

/// Where two adapters differ in form; rank and scale of each module that both or one of them has.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Name of the module.
    pub(crate) module: String,
    /// The first adapter's.
    pub(crate) ours: Option<(usize, f32)>,
    /// The second one's.
    pub(crate) theirs: Option<(usize, f32)>,
}

/// The last name of a path (`q_proj`), as adapters select it.
fn short_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Names that `target_modules` selects.
fn targets<'a>(layout: &'a Layout, names: &[String]) -> Result<BTreeSet<&'a str>> {
    let mut known: Vec<&str> = vec![];
    for linear in layout.layers.iter().flat_map(Layer::linears) {
        let name = short_name(layout.module_name(linear));
        if !known.contains(&name) {
            known.push(name);
        }
    }
    if names == ["all-linear"] {
        return Ok(known.into_iter().collect());
    }
    let find = |name: &String| {
        let found = known.iter().copied().find(|known| known == name);
        found.ok_or_else(|| {
            Error::Lora(format!("target module \"{name}\" is not one of all-linear, {}", known.join(", ")))
        })
    };
    let found: BTreeSet<&str> = names.iter().map(find).collect::<Result<_>>()?;
    if found.is_empty() { Err(Error::Lora("target_modules is empty".to_owned())) } else { Ok(found) }
}

impl Adapter {
    /// A fresh adapter: A uniform in `±1/sqrt(in)` as PEFT initializes it, B zero, so that it changes nothing yet.
    ///
    /// # Errors
    /// Targets or patterns that name nothing.
    pub fn init(config: &ModelConfig, lora: &LoraConfig, device: Device) -> Result<Self> {
        let (layout, info) = (Layout::new(config), AdapterInfo::new(lora)?);
        let init = |LoraShape { linear, rank: r, shape: [out, width] }: LoraShape| -> Result<(ParamId, LoraWeights)> {
            let bound = 1.0 / (width as f64).sqrt();
            let draw = |i: usize| ((2.0 * uniform(lora.seed, linear.index as u64, i as u64) - 1.0) * bound) as f32;
            let module = layout.module_name(linear).to_owned();
            Ok((
                linear.weight,
                LoraWeights {
                    a: Tensor::weight(device, (0..r * width).map(draw).collect(), [r, width])?,
                    b: Tensor::weight(device, vec![0.0; out * r], [out, r])?,
                    scale: info.scale(&module, r),
                    module,
                },
            ))
        };
        let modules = Self::shapes(&layout, lora)?.into_iter().flatten().map(init).collect::<Result<_>>()?;
        Ok(Self { modules })
    }

    /// Of A and B as [`Adapter::init`] makes them, by layer.
    ///
    /// # Errors
    /// Targets or patterns that name nothing.
    pub(crate) fn shapes(layout: &Layout, lora: &LoraConfig) -> Result<Vec<Vec<LoraShape>>> {
        let (info, targets) = (AdapterInfo::new(lora)?, targets(layout, &lora.target_modules)?);
        let shape = |linear: Linear| {
            let module = layout.module_name(linear);
            let shape = LoraShape { linear, rank: info.rank(module), shape: layout.module_shape(linear) };
            targets.contains(short_name(module)).then_some(shape)
        };
        Ok(layout.layers.iter().map(|layer| layer.linears().filter_map(shape).collect()).collect())
    }

    /// Reads `adapter_config.json` and `adapter_model.safetensors` from a folder.
    ///
    /// # Errors
    /// A file that is missing or damaged, a shape that does not fit the base, a feature that is not implemented.
    pub fn load(dir: &Path, model: &ModelConfig, device: Device) -> Result<Self> {
        sums::verify(dir, |name| name.starts_with("adapter_"))?;
        let config::FileConfig { info, selection } = config::read(dir)?;
        let refuse = |detail: String| Error::Adapter { path: dir.to_owned(), detail };
        let source = SafetensorsWeights::open(&dir.join("adapter_model.safetensors"))?;
        let mut unused: BTreeSet<&String> = source.tensors().keys().collect();
        let layout = Layout::new(model);
        let mut modules = BTreeMap::new();
        for (index, layer) in layout.layers.iter().enumerate() {
            for linear in layer.linears() {
                let name = layout.module_name(linear);
                let [a, b] = ["lora_A", "lora_B"].map(|side| format!("{PREFIX}{name}.{side}.weight"));
                let found = [&a, &b].map(|key| unused.remove(key));
                let there = found != [false, false];
                if there != selection.holds(index, name) {
                    return Err(refuse(contradiction(name, there)));
                }
                if !there {
                    continue;
                }
                let shape = layout.module_shape(linear);
                modules.insert(linear.weight, read_branch(dir, &source, [&a, &b], shape, &info, name, device)?);
            }
        }
        if let Some(unexpected) = unused.first() {
            return Err(refuse(format!("tensor \"{unexpected}\" belongs to no linear layer of the base model")));
        }
        Ok(Self { modules })
    }

    /// The same on `device`, from the host.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(crate) fn on(&self, device: Device) -> Result<Self> {
        let mut copy = self.clone();
        for tensor in copy.iter_mut().filter(|tensor| tensor.device() != device) {
            *tensor = Tensor::weight(device, tensor.read()?, tensor.shape())?;
        }
        Ok(copy)
    }

    /// PEFT's names and the tensors, in a fixed order.
    pub fn named(&self) -> impl Iterator<Item = (String, &Tensor)> {
        self.modules.values().flat_map(|lora| {
            let key = |side: &str| format!("{PREFIX}{}.{side}.weight", lora.module);
            [(key("lora_A"), &lora.a), (key("lora_B"), &lora.b)]
        })
    }

    /// The first module whose adapter differs from `other`'s in presence, rank or scale, and how.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<Difference> {
        let ids: BTreeSet<&ParamId> = self.modules.keys().chain(other.modules.keys()).collect();
        ids.into_iter().find_map(|id| {
            let both = [self, other].map(|adapter| adapter.modules.get(id));
            let [ours, theirs] = both.map(|lora| lora.map(|lora| (lora.a.rows(), lora.scale)));
            let module = both.into_iter().flatten().next()?.module.clone();
            (ours != theirs).then_some(Difference { module, ours, theirs })
        })
    }

    /// The same adapter in memory of its own, where training changes them in place.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copied(&self, layout: &Layout) -> Result<Self> {
        let mut copy = self.clone();
        for tensor in copy.iter_mut() {
            *tensor = tensor.copied()?;
        }
        for group in layout.layers.iter().flat_map(Layer::projections).filter(|group| group.len() > 1) {
            // Projections of one input: one GEMM multiplies by all their A.
            let in_group = |id: &ParamId| group.iter().any(|linear| linear.weight == *id);
            let (first, last) = (group[0].weight, group[group.len() - 1].weight);
            let of_group = copy.modules.range_mut(first..=last).filter(|(id, _)| in_group(id));
            let mut tensors: Vec<&mut Tensor> = of_group.map(|(_, lora)| &mut lora.a).collect();
            if !tensors.is_empty() {
                Tensor::join(&mut tensors)?;
            }
        }
        Ok(copy)
    }

    /// The argument of ops on batches of several adapters.
    pub(crate) fn by_projection(&self, layout: &Layout) -> LoraModules {
        let module = |linear: Linear| {
            let lora = self.modules.get(&linear.weight)?;
            Some(LoraModule { a: lora.a.clone(), b: lora.b.clone(), scale: lora.scale })
        };
        LoraModules::new(layout.layers.iter().flat_map(Layer::linears).map(module).collect())
    }

    /// Tensors, in the order of [`Adapter::named`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.modules.values().flat_map(|lora| [&lora.a, &lora.b])
    }

    /// Tensors for writing, in the order of [`Adapter::named`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.modules.values_mut().flat_map(|lora| [&mut lora.a, &mut lora.b])
    }
}

/// Why a module's tensors and the configuration do not go together. PEFT would leave out what is not selected, and take
/// nothing for what is not there.
fn contradiction(module: &str, there: bool) -> String {
    let keys = "target_modules, exclude_modules and layers_to_transform";
    match there {
        true => format!("{module} has tensors, but {keys} do not select it"),
        false => format!("{module} is selected by {keys}, but has no tensors"),
    }
}

fn read_branch(
    dir: &Path,
    source: &SafetensorsWeights,
    keys: [&String; 2],
    [out, width]: [usize; 2],
    info: &AdapterInfo,
    name: &str,
    device: Device,
) -> Result<LoraWeights> {
    let shapes = [source.shape(keys[0])?.to_vec(), source.shape(keys[1])?.to_vec()];
    let r = shapes[0].first().copied().unwrap_or(0);
    if r == 0 || shapes[0] != [r, width] || shapes[1] != [out, r] {
        let detail = format!(
            "{name}: A is {:?} and B is {:?}, the base needs [r, {width}] and [{out}, r]",
            shapes[0], shapes[1]
        );
        return Err(Error::Adapter { path: dir.to_owned(), detail });
    }
    if r != info.rank(name) {
        let detail = format!(
            "{name}: its tensors have rank {r}, but the configuration (r, rank_pattern) has {}",
            info.rank(name)
        );
        return Err(Error::Adapter { path: dir.to_owned(), detail });
    }
    let read = |key: &str, shape| -> Result<Tensor> {
        let values = source.read(key)?;
        check_finite(key, &values)?;
        Ok(Tensor::weight(device, values, shape)?)
    };
    let module = name.to_owned();
    Ok(LoraWeights { module, a: read(keys[0], [r, width])?, b: read(keys[1], [out, r])?, scale: info.scale(name, r) })
}
