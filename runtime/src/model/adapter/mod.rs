//! Low-rank adapters in PEFT's file format.

mod config;
mod encoded;
mod info;
mod lora;
mod selection;

use std::collections::BTreeSet;
use std::path::Path;

use autograd::ops::{Dropout, LowRank};
use autograd::rng::uniform;
use autograd::{Device, Tensor};

use self::info::AdapterInfo;
pub use self::lora::LoraConfig;
use super::{Module, tensors};
use crate::config::ModelConfig;
use crate::weights::{SafetensorsWeights, WeightSource, check_finite};
use crate::{Error, Result, sums};

/// What PEFT puts before the model's own names.
const PREFIX: &str = "base_model.model.";

/// A and B of one projection's LoRA adapter.
#[derive(Debug, Clone)]
pub struct LoraWeights {
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
    /// Per layer, in the order of [`Module::ALL`].
    pub layers: Vec<[Option<LoraWeights>; 7]>,
}

/// Rank of a module's adapter and shape `[out, in]` of its weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Form {
    /// The projection.
    pub(crate) module: Module,
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

/// `model.layers.N.self_attn.q_proj`
fn module_name(layer: usize, module: Module) -> String {
    format!("model.layers.{layer}.{}", module.path())
}

/// `[out, in]` of a module.
fn module_shape(config: &ModelConfig, module: Module) -> [usize; 2] {
    let specs = tensors(config);
    let spec = specs.iter().find(|s| s.layer == Some(0) && s.part == super::TensorRole::Linear(module));
    let shape = &spec.expect("every table has seven projections").shape;
    [shape[0], shape[1]]
}

/// Modules that `target_modules` selects.
fn targets(names: &[String]) -> Result<BTreeSet<Module>> {
    if names == ["all-linear"] {
        return Ok(Module::ALL.into());
    }
    let find = |name: &String| {
        let known = || Module::ALL.map(Module::short_name).join(", ");
        let module = Module::ALL.into_iter().find(|m| m.short_name() == name);
        module.ok_or_else(|| Error::Lora(format!("target module \"{name}\" is not one of all-linear, {}", known())))
    };
    let found: BTreeSet<Module> = names.iter().map(find).collect::<Result<_>>()?;
    if found.is_empty() { Err(Error::Lora("target_modules is empty".to_owned())) } else { Ok(found) }
}

impl Adapter {
    /// A fresh adapter: A uniform in `±1/sqrt(in)` as PEFT initializes it, B zero, so that it changes nothing yet.
    ///
    /// # Errors
    /// Targets or patterns that name nothing.
    pub fn init(config: &ModelConfig, lora: &LoraConfig, device: Device) -> Result<Self> {
        let info = AdapterInfo::new(lora)?;
        let branch = |layer: usize, Form { module, rank: r, shape: [out, width] }: Form| -> Result<LoraWeights> {
            let bound = 1.0 / (width as f64).sqrt();
            let stream = (layer * Module::ALL.len() + module as usize) as u64;
            let draw = |i: usize| ((2.0 * uniform(lora.seed, stream, i as u64) - 1.0) * bound) as f32;
            Ok(LoraWeights {
                a: Tensor::weight(device, (0..r * width).map(draw).collect(), [r, width])?,
                b: Tensor::weight(device, vec![0.0; out * r], [out, r])?,
                scale: info.scale(&module_name(layer, module), r),
            })
        };
        let layer = |(l, forms): (usize, Vec<Form>)| -> Result<[Option<LoraWeights>; 7]> {
            let mut branches: [Option<LoraWeights>; 7] = Default::default();
            for form in forms {
                branches[form.module as usize] = Some(branch(l, form)?);
            }
            Ok(branches)
        };
        Ok(Self { layers: Self::forms(config, lora)?.into_iter().enumerate().map(layer).collect::<Result<_>>()? })
    }

    /// A and B as [`Adapter::init`] makes them, by layer.
    ///
    /// # Errors
    /// Targets or patterns that name nothing.
    pub(crate) fn forms(config: &ModelConfig, lora: &LoraConfig) -> Result<Vec<Vec<Form>>> {
        let (info, targets) = (AdapterInfo::new(lora)?, targets(&lora.target_modules)?);
        let shapes: Vec<(Module, [usize; 2])> = targets.iter().map(|&m| (m, module_shape(config, m))).collect();
        let form = |layer: usize, (module, shape): (Module, [usize; 2])| Form {
            module,
            rank: info.rank(&module_name(layer, module)),
            shape,
        };
        Ok((0..config.num_layers).map(|layer| shapes.iter().map(|&s| form(layer, s)).collect()).collect())
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
        let mut layers = Vec::with_capacity(model.num_layers);
        for layer in 0..model.num_layers {
            let mut branches: [Option<LoraWeights>; 7] = Default::default();
            for module in Module::ALL {
                let name = module_name(layer, module);
                let [a, b] = ["lora_A", "lora_B"].map(|side| format!("{PREFIX}{name}.{side}.weight"));
                let found = [&a, &b].map(|key| unused.remove(key));
                let there = found != [false, false];
                if there != selection.holds(layer, &name) {
                    return Err(refuse(contradiction(&name, there)));
                }
                if !there {
                    continue;
                }
                let shape = module_shape(model, module);
                branches[module as usize] = Some(read_branch(dir, &source, [&a, &b], shape, &info, &name, device)?);
            }
            layers.push(branches);
        }
        if let Some(unexpected) = unused.first() {
            return Err(refuse(format!("tensor \"{unexpected}\" belongs to no linear layer of the base model")));
        }
        Ok(Self { layers })
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
        self.branches().flat_map(|(layer, module, branch)| {
            let name = module_name(layer, module);
            let key = |side: &str| format!("{PREFIX}{name}.{side}.weight");
            [(key("lora_A"), &branch.a), (key("lora_B"), &branch.b)]
        })
    }

    /// The first module whose adapter differs from `other`'s in presence, rank or scale, and how.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<Difference> {
        let layers = self.layers.iter().zip(&other.layers).enumerate();
        let mut modules =
            layers.flat_map(|(l, (a, b))| Module::ALL.into_iter().zip(a.iter().zip(b)).map(move |m| (l, m)));
        modules.find_map(|(layer, (module, (a, b)))| {
            let [ours, theirs] = [a, b].map(|branch| branch.as_ref().map(|b| (b.a.rows(), b.scale)));
            (ours != theirs).then(|| Difference { module: module_name(layer, module), ours, theirs })
        })
    }

    /// The same adapter in memory of its own, where training changes them in place.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copied(&self) -> Result<Self> {
        let mut copy = self.clone();
        for tensor in copy.iter_mut() {
            *tensor = tensor.copied()?;
        }
        for layer in &mut copy.layers {
            let [q, k, v, _, gate, up, _] = layer;
            for group in [&mut [q, k, v][..], &mut [gate, up][..]] {
                // Projections of one input: one GEMM multiplies by all their A.
                let mut maps: Vec<&mut Tensor> = group.iter_mut().filter_map(|b| Some(&mut b.as_mut()?.a)).collect();
                if !maps.is_empty() {
                    Tensor::join(&mut maps)?;
                }
            }
        }
        Ok(copy)
    }

    /// Tensors, in the order of [`Adapter::named`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.branches().flat_map(|(.., branch)| [&branch.a, &branch.b])
    }

    /// Tensors for writing, in the order of [`Adapter::named`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flatten().flatten().flat_map(|branch| [&mut branch.a, &mut branch.b])
    }

    fn branches(&self) -> impl Iterator<Item = (usize, Module, &LoraWeights)> {
        self.layers.iter().enumerate().flat_map(|(layer, branches)| {
            let of_layer = Module::ALL.into_iter().zip(branches);
            of_layer.filter_map(move |(module, branch)| Some((layer, module, branch.as_ref()?)))
        })
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
    Ok(LoraWeights { a: read(keys[0], [r, width])?, b: read(keys[1], [out, r])?, scale: info.scale(name, r) })
}
