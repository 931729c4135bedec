//! Values on a GPU.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Arg, Buffer, DType, Gpu, rows};
use crate::Result;

/// Values that one task rounds.
const TASK: usize = 1 << 16;

/// A run of values in GPU memory; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Array {
    buffer: Arc<Buffer>,
    /// Bytes before the first value.
    offset: usize,
    len: usize,
    dtype: DType,
}

impl Array {
    /// Memory for `len` values, whose contents are whatever was there.
    pub(crate) fn uninit(gpu: &'static Gpu, len: usize, dtype: DType) -> Result<Self> {
        let buffer = gpu.alloc(len * dtype.bytes())?;
        Ok(Self { buffer: Arc::new(buffer), offset: 0, len, dtype })
    }

    pub(crate) fn zeros(gpu: &'static Gpu, len: usize, dtype: DType) -> Result<Self> {
        let array = Self::uninit(gpu, len, dtype)?;
        gpu.fill_zero(&array.buffer)?;
        Ok(array)
    }

    /// Values rounded to the nearest bf16.
    pub(crate) fn bf16(ordinal: usize, values: &[f32]) -> Result<Self> {
        Self::of(Gpu::get(ordinal)?, values, DType::Bf16)
    }

    pub(crate) fn f32(ordinal: usize, values: &[f32]) -> Result<Self> {
        Self::of(Gpu::get(ordinal)?, values, DType::F32)
    }

    fn of(gpu: &'static Gpu, values: &[f32], dtype: DType) -> Result<Self> {
        let buffer = match dtype {
            DType::Bf16 => gpu.upload(&to_bf16(values))?,
            DType::F32 => gpu.upload(values)?,
        };
        Ok(Self { buffer: Arc::new(buffer), offset: 0, len: values.len(), dtype })
    }

    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.buffer.gpu()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(crate) fn bytes(&self) -> usize {
        self.len * self.dtype.bytes()
    }

    /// Address of the first value.
    pub(crate) fn ptr(&self) -> u64 {
        self.buffer.ptr() + self.offset as u64
    }

    /// The address as a kernel argument.
    pub(crate) fn arg(&self) -> Arg {
        Arg::Ptr(self.ptr())
    }

    /// Values `first..first + len` of the same memory.
    pub(crate) fn part(&self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.len, "values {first}..{} of {}", first + len, self.len);
        Self { buffer: self.buffer.clone(), offset: self.offset + first * self.dtype.bytes(), len, dtype: self.dtype }
    }

    /// Values copied to the host.
    pub(crate) fn read(&self) -> Result<Vec<f32>> {
        let gpu = self.gpu();
        match self.dtype {
            DType::Bf16 => {
                let bits: Vec<u16> = gpu.download(&self.buffer, self.offset, self.len)?;
                Ok(bits.into_iter().map(from_bf16).collect())
            }
            DType::F32 => gpu.download(&self.buffer, self.offset, self.len),
        }
    }

    /// As many zeros in f32.
    pub(crate) fn zeros_f32(&self) -> Result<Self> {
        Self::zeros(self.gpu(), self.len, DType::F32)
    }

    /// Overwrites the values, rounded to this precision.
    pub(crate) fn write(&self, values: &[f32]) -> Result<()> {
        assert_eq!(values.len(), self.len, "values of another array");
        match self.dtype {
            DType::Bf16 => self.gpu().upload_into(&self.buffer, self.offset, &to_bf16(values)),
            DType::F32 => self.gpu().upload_into(&self.buffer, self.offset, values),
        }
    }

    /// `len` values of `dtype` from byte `offset` of a buffer on.
    pub(crate) fn in_buffer(buffer: Arc<Buffer>, offset: usize, len: usize, dtype: DType) -> Self {
        assert!(offset + len * dtype.bytes() <= buffer.bytes(), "values outside their buffer");
        Self { buffer, offset, len, dtype }
    }

    /// The same values in f32.
    pub(crate) fn to_f32(&self) -> Result<Self> {
        let out = Self::uninit(self.gpu(), self.len, DType::F32)?;
        match self.dtype {
            DType::F32 => self.copy_to(&out)?,
            DType::Bf16 => rows::elementwise("cast_to_f32", &[self.arg(), out.arg()], self)?,
        }
        Ok(out)
    }

    /// The same values elsewhere.
    pub(crate) fn copied(&self) -> Result<Self> {
        let out = Self::uninit(self.gpu(), self.len, self.dtype)?;
        self.copy_to(&out)?;
        Ok(out)
    }

    /// Copies of arrays of one precision, behind each other in one buffer.
    pub(crate) fn joined(arrays: &[&Self]) -> Result<Vec<Self>> {
        let whole = Self::uninit(arrays[0].gpu(), arrays.iter().map(|a| a.len).sum(), arrays[0].dtype)?;
        let mut first = 0;
        let part = |array: &&Self| {
            let part = whole.part(first, array.len);
            first += array.len;
            array.copy_to(&part)?;
            Ok(part)
        };
        arrays.iter().map(part).collect()
    }

    /// All of `arrays` as one, if they lie behind each other in one buffer.
    pub(crate) fn as_one(arrays: &[&Self]) -> Option<Self> {
        let (first, rest) = arrays.split_first()?;
        let mut whole = (*first).clone();
        for next in rest {
            let adjacent = Arc::ptr_eq(&whole.buffer, &next.buffer) && next.ptr() == whole.ptr() + whole.bytes() as u64;
            if !(adjacent && next.dtype == whole.dtype) {
                return None;
            }
            whole.len += next.len;
        }
        Some(whole)
    }

    /// Overwrites the values of `to`, which is as long and as precise.
    pub(crate) fn copy_to(&self, to: &Self) -> Result<()> {
        assert_eq!((self.len, self.dtype), (to.len, to.dtype), "a copy between unlike arrays");
        self.gpu().copy(&self.buffer, self.offset, &to.buffer, to.offset, self.bytes())
    }

    /// Whether nobody else holds the memory.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// `self + other`, in place where nobody else holds `self`.
    pub(crate) fn accumulate(self, other: &Self) -> Result<Self> {
        assert_eq!((self.len, self.dtype), (other.len, other.dtype), "gradients of different values");
        let sum = if self.is_alone() { self.clone() } else { Self::uninit(self.gpu(), self.len, self.dtype)? };
        match self.dtype {
            DType::Bf16 => rows::elementwise("add", &[self.arg(), other.arg(), sum.arg()], &self)?,
            DType::F32 => {
                if sum.ptr() != self.ptr() {
                    self.copy_to(&sum)?;
                }
                rows::elementwise("accumulate", &[sum.arg(), other.arg()], &self)?;
            }
        }
        Ok(sum)
    }
}

/// Nearest bf16, ties to even; a NaN stays one.
pub(crate) fn to_bf16(values: &[f32]) -> Vec<u16> {
    let round = |&v: &f32| {
        let bits = v.to_bits();
        if v.is_nan() {
            return (bits >> 16) as u16 | 0x40;
        }
        ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
    };
    // A model's values come this way; one thread would take as long as the file's reading.
    values.par_iter().with_min_len(TASK).map(round).collect()
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16() {
        let cases: [(f32, f32); 7] = [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0),
            (1.0 + 1.1 / 256.0, 1.0 + 2.0 / 256.0),
            (-0.0, -0.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
        ];
        for (value, want) in cases {
            assert_eq!(from_bf16(to_bf16(&[value])[0]).to_bits(), want.to_bits(), "{value}");
        }
        assert!(from_bf16(to_bf16(&[f32::NAN])[0]).is_nan());
    }
}
