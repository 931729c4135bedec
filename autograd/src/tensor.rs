//! Two-dimensional tensors that are cheap to clone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::gemm;
use crate::cuda::{Array, HostArray};
use crate::{Device, Error, Result, reference};

/// Names one value; clones share it. Gradients are looked up by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(u64);

impl TensorId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// How a matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    Rows,
    /// The form in which `Cpu` multiplies by a weight: sixteen rows side by side, zero-padded.
    Packed,
}

#[derive(Debug, Clone)]
enum Data {
    Cpu(Arc<Vec<f32>>, Layout),
    Cuda(Array),
    /// f32 that wait on the host for a GPU.
    Host(HostArray),
    Reference(Box<burn::Tensor<2>>),
}

/// A matrix `[rows, cols]` on one device, of f32 on the host and of bf16 on a GPU, where losses, gradients of weights
/// and moments are f32. Values never change; clones share them.
#[derive(Debug, Clone)]
pub struct Tensor {
    id: TensorId,
    shape: [usize; 2],
    data: Data,
}

impl Tensor {
    /// Host values in row-major order.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` does not fill `shape`.
    pub fn new(device: Device, values: Vec<f32>, shape: [usize; 2]) -> Result<Self> {
        if values.len() != shape[0] * shape[1] {
            return Err(Error::Length { shape, len: values.len() });
        }
        Ok(match device {
            Device::Cpu => Self::cpu(values, shape),
            Device::Cuda(ordinal) => Self::cuda(Array::bf16(ordinal, &values)?, shape),
            Device::Reference => Self::reference(reference::upload(values, shape)),
        })
    }

    /// One value `[1, 1]` in the precision of losses.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn scalar(device: Device, value: f32) -> Result<Self> {
        match device {
            Device::Cuda(ordinal) => Ok(Self::cuda(Array::f32(ordinal, &[value])?, [1, 1])),
            Device::Cpu | Device::Reference => Self::new(device, vec![value], [1, 1]),
        }
    }

    /// A weight matrix `[out, in]`, given row by row, in the layout that `device` multiplies by.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` does not fill `shape`.
    pub fn weight(device: Device, values: Vec<f32>, shape @ [n, k]: [usize; 2]) -> Result<Self> {
        let rows = Self::new(device, values, shape)?;
        Ok(match &rows.data {
            Data::Cpu(values, _) => Self::cpu_with_layout(gemm::pack(values, n, k), shape, Layout::Packed),
            Data::Cuda(_) | Data::Host(_) | Data::Reference(_) => rows,
        })
    }

    /// Zeros in row-major order.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros(device: Device, shape: [usize; 2]) -> Result<Self> {
        Self::new(device, vec![0.0; shape[0] * shape[1]], shape)
    }

    pub(crate) fn cpu(values: Vec<f32>, shape: [usize; 2]) -> Self {
        Self::cpu_with_layout(values, shape, Layout::Rows)
    }

    pub(crate) fn cpu_with_layout(values: Vec<f32>, shape: [usize; 2], layout: Layout) -> Self {
        Self { id: TensorId::next(), shape, data: Data::Cpu(Arc::new(values), layout) }
    }

    pub(crate) fn cuda(array: Array, shape: [usize; 2]) -> Self {
        debug_assert_eq!(array.len(), shape[0] * shape[1], "values of {shape:?}");
        Self { id: TensorId::next(), shape, data: Data::Cuda(array) }
    }

    pub(crate) fn reference(t: burn::Tensor<2>) -> Self {
        Self { id: TensorId::next(), shape: t.dims(), data: Data::Reference(Box::new(t)) }
    }

    /// The value's name.
    #[must_use]
    pub fn id(&self) -> TensorId {
        self.id
    }

    /// `[rows, cols]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.shape[1]
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> Device {
        match self.data {
            Data::Cpu(..) => Device::Cpu,
            Data::Cuda(ref array) => Device::Cuda(array.gpu().info().ordinal),
            Data::Host(ref array) => Device::Cuda(array.gpu().info().ordinal),
            Data::Reference(_) => Device::Reference,
        }
    }

    /// How it lies in memory.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self.data {
            Data::Cpu(_, layout) => layout,
            Data::Cuda(_) | Data::Host(_) | Data::Reference(_) => Layout::Rows,
        }
    }

    /// Bytes it occupies, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Cpu(values, _) => values.len() * size_of::<f32>(),
            Data::Cuda(array) => array.bytes(),
            Data::Host(_) | Data::Reference(_) => self.shape[0] * self.shape[1] * size_of::<f32>(),
        }
    }

    /// Values in row-major order, copied to the host.
    ///
    /// # Errors
    /// The device was lost.
    pub fn read(&self) -> Result<Vec<f32>> {
        Ok(match &self.data {
            Data::Cpu(values, Layout::Rows) => values.to_vec(),
            Data::Cpu(values, Layout::Packed) => gemm::unpack(values, self.shape[0], self.shape[1]),
            Data::Cuda(array) => array.read()?,
            Data::Host(array) => array.read()?,
            Data::Reference(t) => reference::download((**t).clone()),
        })
    }

    /// [`Tensor::read`], where a lost device is the end in any case.
    ///
    /// # Panics
    /// The device was lost.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        self.read().expect("the device answers")
    }

    /// Values in the order of [`Tensor::layout`], padding included, borrowed where the device is the host.
    ///
    /// # Panics
    /// When the tensor is not on `Cpu`; the dispatch of ops has checked that.
    pub(crate) fn raw(&self) -> &[f32] {
        match &self.data {
            Data::Cpu(values, _) => values,
            Data::Cuda(_) | Data::Host(_) | Data::Reference(_) => {
                panic!("raw values of a tensor that is not on the host")
            }
        }
    }

    /// The array on the GPU.
    ///
    /// # Panics
    /// When the tensor is not on `Cuda`; the dispatch of ops has checked that.
    pub(crate) fn array(&self) -> &Array {
        match &self.data {
            Data::Cuda(array) => array,
            Data::Cpu(..) | Data::Host(_) | Data::Reference(_) => panic!("GPU array of a tensor that is not there"),
        }
    }

    /// The values that wait on the host for a GPU; none where they are on the device.
    pub(crate) fn offloaded(&self) -> Option<&HostArray> {
        match &self.data {
            Data::Host(array) => Some(array),
            Data::Cpu(..) | Data::Cuda(_) | Data::Reference(_) => None,
        }
    }

    pub(crate) fn host(array: HostArray, shape: [usize; 2]) -> Self {
        debug_assert_eq!(array.len(), shape[0] * shape[1], "values of {shape:?}");
        Self { id: TensorId::next(), shape, data: Data::Host(array) }
    }

    /// The values for writing, without a copy when nobody else holds them.
    pub(crate) fn into_raw(self) -> Vec<f32> {
        match self.data {
            Data::Cpu(values, _) => Arc::unwrap_or_clone(values),
            Data::Cuda(_) | Data::Host(_) | Data::Reference(_) => {
                panic!("raw values of a tensor that is not on the host")
            }
        }
    }

    /// # Panics
    /// When the tensor is not on `Reference`.
    pub(crate) fn burn(&self) -> burn::Tensor<2> {
        match &self.data {
            Data::Reference(t) => (**t).clone(),
            Data::Cpu(..) | Data::Cuda(_) | Data::Host(_) => panic!("burn tensor of a native tensor"),
        }
    }

    /// Zeros of the same shape, layout and device, in f32: sums and moments.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn zeros_like(&self) -> Result<Self> {
        Ok(match &self.data {
            Data::Cpu(values, layout) => Self::cpu_with_layout(vec![0.0; values.len()], self.shape, *layout),
            Data::Cuda(array) => Self::cuda(array.zeros_f32()?, self.shape),
            Data::Host(array) => Self::host(HostArray::new(array.gpu(), &vec![0.0; array.len()])?, self.shape),
            Data::Reference(t) => Self::reference(t.zeros_like()),
        })
    }

    /// Puts other values, given row by row, in the place of these: on a GPU in the same memory, for all who hold it; else
    /// for this tensor alone.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` does not fill the shape.
    pub fn set(&mut self, values: Vec<f32>) -> Result<()> {
        if values.len() != self.shape[0] * self.shape[1] {
            return Err(Error::Length { shape: self.shape, len: values.len() });
        }
        match &self.data {
            Data::Cuda(array) => array.write(&values),
            Data::Host(array) => array.write(&values),
            Data::Cpu(_, Layout::Packed) => {
                *self = Self::weight(self.device(), values, self.shape)?;
                Ok(())
            }
            Data::Cpu(..) | Data::Reference(_) => {
                *self = Self::new(self.device(), values, self.shape)?;
                Ok(())
            }
        }
    }

    /// The same values in memory of their own, where weights are updated in place (on a GPU); else a clone.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn copied(&self) -> Result<Self> {
        match &self.data {
            Data::Cuda(array) => Ok(Self::cuda(array.copied()?, self.shape)),
            Data::Cpu(..) | Data::Host(_) | Data::Reference(_) => Ok(self.clone()),
        }
    }

    /// Overwrites the values on a GPU, for all who hold them, with `from`'s.
    ///
    /// # Errors
    /// The device was lost.
    ///
    /// # Panics
    /// When the tensors differ in shape or precision, or are not on a GPU.
    pub fn assign(&self, from: &Self) -> Result<()> {
        assert_eq!(self.shape, from.shape, "an assignment between unlike tensors");
        from.array().copy_to(self.array())
    }

    /// Moves tensors of one width to rows that follow each other in memory, where an op that uses them together can then
    /// take them as one (on a GPU; elsewhere nothing happens).
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn join(tensors: &mut [&mut Self]) -> Result<()> {
        if !tensors.iter().all(|t| matches!(t.data, Data::Cuda(_))) {
            return Ok(());
        }
        let joined = Array::joined(&tensors.iter().map(|t| t.array()).collect::<Vec<_>>())?;
        for (tensor, array) in tensors.iter_mut().zip(joined) {
            **tensor = Self::cuda(array, tensor.shape);
        }
        Ok(())
    }

    /// `self + other`, the sum of two gradients of one value.
    ///
    /// # Errors
    /// The device is out of memory.
    ///
    /// # Panics
    /// When they differ in shape, layout or device.
    pub fn accumulate(self, other: &Self) -> Result<Self> {
        assert_eq!((self.shape, self.layout()), (other.shape, other.layout()), "gradients of different values");
        Ok(match self.data {
            Data::Cpu(_, layout) => {
                let shape = self.shape;
                let mut sum = self.into_raw();
                for (s, o) in sum.iter_mut().zip(other.raw()) {
                    *s += o;
                }
                Self::cpu_with_layout(sum, shape, layout)
            }
            Data::Cuda(array) => Self::cuda(array.accumulate(other.array())?, self.shape),
            Data::Host(_) => panic!("a sum of values that wait on the host"),
            Data::Reference(t) => Self::reference(*t + other.burn()),
        })
    }
}
