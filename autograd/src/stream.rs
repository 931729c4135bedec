//! Groups of tensors, a model's layers, that wait in the host's memory and pass through a GPU's.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cuda::{Array, CopyStream, DType, Gpu, Pinned, to_bf16};
use crate::{Device, Error, Result, Tensor};

/// Where the GPU's blocks begin; what lies on it as a whole has this alignment, so a group gets it too.
const ALIGNMENT: usize = 512;

/// Values of a tensor and their shape, row after row.
pub type Values = (Vec<f32>, [usize; 2]);

/// Groups of bf16 tensors in pinned memory. Two of them are on the GPU: the one in use, and the next one on its way.
pub struct Groups {
    gpu: &'static Gpu,
    groups: Vec<Group>,
    lanes: Mutex<Option<[Resident; 2]>>,
}

struct Group {
    memory: Pinned,
    bytes: usize,
    /// First byte and shape of every tensor.
    tensors: Vec<(usize, [usize; 2])>,
}

/// One of the two places on the GPU.
struct Resident {
    lane: CopyStream,
    /// The group that is there, or on its way.
    holds: Option<usize>,
    /// The GPU's work waits for it already.
    ready: bool,
}

impl Groups {
    /// No groups yet.
    ///
    /// # Errors
    /// [`Error::Device`] on a device that is no GPU, or that cannot be used.
    pub fn new(device: Device) -> Result<Self> {
        let Device::Cuda(ordinal) = device else {
            let why = "only a GPU's memory can be relieved by the host's".to_owned();
            return Err(Error::Device { name: device.to_string(), why });
        };
        Ok(Self { gpu: Gpu::get(ordinal)?, groups: vec![], lanes: Mutex::default() })
    }

    /// Adds a group, rounded to bf16. Tensors of one block will lie behind each other on the GPU.
    ///
    /// # Errors
    /// [`Error::Length`] when values do not fill their shape; the host has no memory that can be pinned.
    pub fn push(&mut self, blocks: &[Vec<Values>]) -> Result<()> {
        let mut tensors = vec![];
        let mut end = 0usize;
        for block in blocks {
            end = end.next_multiple_of(ALIGNMENT);
            for (values, shape) in block {
                if values.len() != shape[0] * shape[1] {
                    return Err(Error::Length { shape: *shape, len: values.len() });
                }
                tensors.push((end, *shape));
                end += values.len() * DType::Bf16.bytes();
            }
        }
        let mut memory = self.gpu.pin(end)?;
        for ((values, _), (offset, _)) in blocks.iter().flatten().zip(&tensors) {
            let bytes: Vec<u8> = to_bf16(values).into_iter().flat_map(u16::to_ne_bytes).collect();
            memory.write(*offset, &bytes);
        }
        self.groups.push(Group { memory, bytes: end, tensors });
        Ok(())
    }

    /// The device that the tensors are for.
    #[must_use]
    pub fn device(&self) -> Device {
        Device::Cuda(self.gpu.info().ordinal)
    }

    /// The tensors of a group, on the GPU. Their memory belongs to another group once the group after the next is asked
    /// for; groups are asked for in order, the first one after the last, so that the next is under way in time.
    ///
    /// # Errors
    /// The device is out of memory or lost, or inside the capture of a graph.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn get(&self, index: usize) -> Result<Vec<Tensor>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.is_none() {
            *lanes = Some([self.place()?, self.place()?]);
        }
        let Some(places) = lanes.as_mut() else { unreachable!("just made") };
        let mine = match places.iter().position(|place| place.holds == Some(index)) {
            Some(mine) => mine,
            None => {
                self.fetch(&mut places[0], index)?;
                0
            }
        };
        if !places[mine].ready {
            places[mine].lane.before_card()?;
            places[mine].ready = true;
            // All work on the other place's group has been started: whoever asks for this one is done with that.
            let next = (index + 1) % self.groups.len();
            let other = &mut places[1 - mine];
            if other.holds != Some(next) && next != index {
                self.fetch(other, next)?;
            }
        }
        let buffer = places[mine].lane.buffer();
        let on_card = |&(offset, shape): &(usize, [usize; 2])| {
            Tensor::cuda(Array::in_buffer(Arc::clone(buffer), offset, shape[0] * shape[1], DType::Bf16), shape)
        };
        Ok(self.groups[index].tensors.iter().map(on_card).collect())
    }

    fn place(&self) -> Result<Resident> {
        let bytes = self.groups.iter().map(|group| group.bytes).max().unwrap_or(0);
        Ok(Resident { lane: CopyStream::new(self.gpu, bytes)?, holds: None, ready: false })
    }

    fn fetch(&self, place: &mut Resident, index: usize) -> Result<()> {
        let group = &self.groups[index];
        place.holds = None;
        place.lane.after_card()?;
        place.lane.fetch(&group.memory, 0, 0, group.bytes)?;
        (place.holds, place.ready) = (Some(index), false);
        Ok(())
    }
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} groups on the host for {}", self.groups.len(), self.device())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The end of a lane orders the GPU's work after its copies, which must be over before their source is freed. After
        // an error nothing runs any more.
        drop(self.lanes.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        let _ = self.gpu.synchronize();
    }
}
