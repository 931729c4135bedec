//! Two-dimensional f32 tensors that are cheap to clone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::gemm;
use crate::{Device, Error, Result, portable};

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
    Panels,
}

#[derive(Debug, Clone)]
enum Data {
    Cpu(Arc<Vec<f32>>, Layout),
    Portable(Box<burn::Tensor<2>>),
}

/// A matrix `[rows, cols]` of f32 on one device. Values never change; clones share them.
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
            Device::Portable => Self::portable(portable::upload(values, shape)),
        })
    }

    /// A weight matrix `[out, in]`, given row by row, in the layout that `device` multiplies by.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` does not fill `shape`.
    pub fn weight(device: Device, values: Vec<f32>, shape @ [n, k]: [usize; 2]) -> Result<Self> {
        let rows = Self::new(device, values, shape)?;
        Ok(match &rows.data {
            Data::Cpu(values, _) => Self::cpu_with_layout(gemm::pack(values, n, k), shape, Layout::Panels),
            Data::Portable(_) => rows,
        })
    }

    /// Zeros in row-major order.
    #[must_use]
    pub fn zeros(device: Device, shape: [usize; 2]) -> Self {
        match device {
            Device::Cpu => Self::cpu(vec![0.0; shape[0] * shape[1]], shape),
            Device::Portable => Self::portable(portable::upload(vec![0.0; shape[0] * shape[1]], shape)),
        }
    }

    pub(crate) fn cpu(values: Vec<f32>, shape: [usize; 2]) -> Self {
        Self::cpu_with_layout(values, shape, Layout::Rows)
    }

    pub(crate) fn cpu_with_layout(values: Vec<f32>, shape: [usize; 2], layout: Layout) -> Self {
        Self { id: TensorId::next(), shape, data: Data::Cpu(Arc::new(values), layout) }
    }

    pub(crate) fn portable(t: burn::Tensor<2>) -> Self {
        Self { id: TensorId::next(), shape: t.dims(), data: Data::Portable(Box::new(t)) }
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
            Data::Portable(_) => Device::Portable,
        }
    }

    /// How it lies in memory.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self.data {
            Data::Cpu(_, layout) => layout,
            Data::Portable(_) => Layout::Rows,
        }
    }

    /// Bytes it occupies, padding included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Cpu(values, _) => values.len() * size_of::<f32>(),
            Data::Portable(_) => self.shape[0] * self.shape[1] * size_of::<f32>(),
        }
    }

    /// Values in row-major order, copied to the host.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        match &self.data {
            Data::Cpu(values, Layout::Rows) => values.to_vec(),
            Data::Cpu(values, Layout::Panels) => gemm::unpack(values, self.shape[0], self.shape[1]),
            Data::Portable(t) => portable::download((**t).clone()),
        }
    }

    /// Values in the order of [`Tensor::layout`], padding included, borrowed where the device is the host.
    ///
    /// # Panics
    /// When the tensor is not on `Cpu`; the dispatch of ops has checked that.
    pub(crate) fn raw(&self) -> &[f32] {
        match &self.data {
            Data::Cpu(values, _) => values,
            Data::Portable(_) => panic!("raw values of a portable tensor"),
        }
    }

    /// The values for writing, without a copy when nobody else holds them.
    pub(crate) fn into_raw(self) -> Vec<f32> {
        match self.data {
            Data::Cpu(values, _) => Arc::unwrap_or_clone(values),
            Data::Portable(_) => panic!("raw values of a portable tensor"),
        }
    }

    /// # Panics
    /// When the tensor is not on `Portable`.
    pub(crate) fn burn(&self) -> burn::Tensor<2> {
        match &self.data {
            Data::Portable(t) => (**t).clone(),
            Data::Cpu(..) => panic!("burn tensor of a native tensor"),
        }
    }

    /// Zeros of the same shape, layout and device.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        match &self.data {
            Data::Cpu(values, layout) => Self::cpu_with_layout(vec![0.0; values.len()], self.shape, *layout),
            Data::Portable(t) => Self::portable(t.zeros_like()),
        }
    }

    /// Other values, given row by row, in the same shape, layout and device.
    ///
    /// # Errors
    /// [`Error::Length`] when `values` does not fill the shape.
    pub fn with_values(&self, values: Vec<f32>) -> Result<Self> {
        match self.layout() {
            Layout::Rows => Self::new(self.device(), values, self.shape),
            Layout::Panels => Self::weight(self.device(), values, self.shape),
        }
    }

    /// `self + other`, the sum of two gradients of one value.
    ///
    /// # Panics
    /// When they differ in shape, layout or device.
    #[must_use]
    pub fn accumulate(self, other: &Self) -> Self {
        assert_eq!((self.shape, self.layout()), (other.shape, other.layout()), "gradients of different values");
        match &self.data {
            Data::Cpu(_, layout) => {
                let (shape, layout) = (self.shape, *layout);
                let mut sum = self.into_raw();
                for (s, o) in sum.iter_mut().zip(other.raw()) {
                    *s += o;
                }
                Self::cpu_with_layout(sum, shape, layout)
            }
            Data::Portable(t) => Self::portable((**t).clone() + other.burn()),
        }
    }
}
