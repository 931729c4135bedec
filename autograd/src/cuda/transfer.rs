//! Copies between host and GPU, and on the GPU.

use std::collections::VecDeque;
use std::marker::PhantomData;

use super::driver::cu;
use super::gpu::{Gpu, Mark, lock};
use super::pool::Buffer;
use super::staging::{PIECE, Pinned, Ring};
use crate::{Error, Result};

/// Numbers that look the same on host and GPU. bf16 travels as `u16`.
///
/// # Safety
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Plain: Copy + Send + 'static {}

macro_rules! plain {
    ($($number:ty)*) => { $(
        // SAFETY: a number.
        unsafe impl Plain for $number {}
    )* };
}
plain!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

impl Gpu {
    /// A buffer with these values. The host's copy is free on return; the GPU's is filled in the order of the stream.
    ///
    /// # Errors
    /// When there is no memory, or inside a capture.
    pub fn upload<T: Plain>(&'static self, values: &[T]) -> Result<Buffer> {
        let buffer = self.alloc(size_of_val(values))?;
        self.upload_into(&buffer, 0, values)?;
        Ok(buffer)
    }

    /// Writes the values from byte `offset` on, as [`Gpu::upload`].
    ///
    /// # Errors
    /// When they do not fit, or inside a capture.
    pub fn upload_into<T: Plain>(&'static self, to: &Buffer, offset: usize, values: &[T]) -> Result<()> {
        let mut target = self.range(to, "upload", offset, size_of_val(values))?;
        let _turn = self.enter()?;
        self.refuse_capture("an upload")?;
        let mut ring = lock(&self.ring);
        if ring.is_none() {
            *ring = Some(Ring::new()?);
        }
        let Some(ring) = ring.as_mut() else { return Ok(()) };
        // SAFETY: a slice of plain numbers is a slice of bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        for piece in bytes.chunks(PIECE) {
            let place = ring.place(self, piece.len())?;
            // SAFETY: the ring gave `piece.len()` bytes that nobody else uses.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), place, piece.len()) };
            // SAFETY: the target was checked; the place stays as it is until the event that `launched` records.
            unsafe { cu!(cuMemcpyHtoDAsync_v2(target, place.cast(), piece.len(), self.stream)) }?;
            ring.launched(self, piece.len())?;
            target += piece.len() as u64;
        }
        Ok(())
    }

    /// `len` values from byte `offset` on; waits for them.
    ///
    /// # Errors
    /// When the range is not inside the buffer, work before it failed, or inside a capture.
    pub fn download<T: Plain>(&'static self, from: &Buffer, offset: usize, len: usize) -> Result<Vec<T>> {
        self.range(from, "download", offset, bytes_of::<T>(len))?;
        let step = PIECE / size_of::<T>();
        let mut values = Vec::with_capacity(len);
        // Two pieces are under way: one is copied by the host while the GPU writes the other.
        let mut flying: VecDeque<Pending<T>> = VecDeque::new();
        for start in (0..len).step_by(step) {
            let next = self.download_async(from, offset + start * size_of::<T>(), step.min(len - start))?;
            flying.push_back(next);
            if flying.len() == 2
                && let Some(first) = flying.pop_front()
            {
                first.wait_into(&mut values)?;
            }
        }
        for last in flying {
            last.wait_into(&mut values)?;
        }
        Ok(values)
    }

    /// As [`Gpu::download`], but returns at once; the values are those after all work so far.
    ///
    /// # Errors
    /// When the range is not inside the buffer, or inside a capture.
    pub fn download_async<T: Plain>(&'static self, from: &Buffer, offset: usize, len: usize) -> Result<Pending<T>> {
        let bytes = bytes_of::<T>(len);
        let source = self.range(from, "download", offset, bytes)?;
        let _turn = self.enter()?;
        self.refuse_capture("a download")?;
        let pinned = self.take_pinned(bytes)?;
        if bytes > 0 {
            // SAFETY: the source was checked; the pinned memory has room and is kept until the event.
            unsafe { cu!(cuMemcpyDtoHAsync_v2(pinned.address().cast(), source, bytes, self.stream)) }?;
        }
        let mark = self.mark()?;
        Ok(Pending { gpu: self, flight: Some((pinned, mark)), len, values: PhantomData })
    }

    /// Copies on the GPU, in the order of the stream.
    ///
    /// # Errors
    /// When a range is not inside its buffer.
    pub fn copy(&self, from: &Buffer, from_offset: usize, to: &Buffer, to_offset: usize, bytes: usize) -> Result<()> {
        let source = self.range(from, "copy", from_offset, bytes)?;
        let target = self.range(to, "copy", to_offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let _turn = self.enter()?;
        // SAFETY: both ranges were checked.
        unsafe { cu!(cuMemcpyDtoDAsync_v2(target, source, bytes, self.stream)) }
    }

    /// Zeros in every byte.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_zero(&self, buffer: &Buffer) -> Result<()> {
        self.fill_bytes(buffer, 0)
    }

    /// The same value in every byte; 0xFF makes a NaN of every bf16 and f32.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_bytes(&self, buffer: &Buffer, byte: u8) -> Result<()> {
        let target = self.range(buffer, "fill", 0, buffer.bytes())?;
        if buffer.bytes() == 0 {
            return Ok(());
        }
        let _turn = self.enter()?;
        // SAFETY: the whole buffer and no more.
        unsafe { cu!(cuMemsetD8Async(target, byte, buffer.bytes(), self.stream)) }
    }

    /// The address of a range of a buffer of this GPU.
    fn range(&self, buffer: &Buffer, op: &'static str, offset: usize, bytes: usize) -> Result<u64> {
        if !std::ptr::eq(self, buffer.gpu()) {
            return Err(Error::DeviceMismatch {
                op,
                left: format!("cuda:{}", self.info().ordinal),
                right: format!("cuda:{}", buffer.gpu().info().ordinal),
            });
        }
        buffer.at(op, offset, bytes)
    }
}

/// Saturates, so that the check of the range refuses it.
fn bytes_of<T>(len: usize) -> usize {
    len.saturating_mul(size_of::<T>())
}

/// Values on their way to the host.
pub struct Pending<T: Plain> {
    gpu: &'static Gpu,
    flight: Option<(Pinned, Mark)>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Pending<T> {
    /// Whether [`Pending::wait`] would return at once.
    ///
    /// # Errors
    /// When work before it failed.
    pub fn is_ready(&self) -> Result<bool> {
        let _turn = self.gpu.enter()?;
        self.flight.as_ref().map_or(Ok(true), |(_, mark)| self.gpu.passed(*mark))
    }

    /// The values.
    ///
    /// # Errors
    /// When work before them failed.
    pub fn wait(self) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.len);
        self.wait_into(&mut values)?;
        Ok(values)
    }

    fn wait_into(mut self, values: &mut Vec<T>) -> Result<()> {
        let _turn = self.gpu.enter()?;
        let Some((pinned, mark)) = self.flight.take() else { return Ok(()) };
        if let Err(e) = self.gpu.wait(mark) {
            // The GPU may still write there.
            std::mem::forget(pinned);
            return Err(e);
        }
        // SAFETY: the GPU has written `len` values; pinned memory is aligned to pages.
        values.extend_from_slice(unsafe { std::slice::from_raw_parts(pinned.address().cast::<T>(), self.len) });
        self.gpu.give_pinned(pinned);
        Ok(())
    }
}

impl<T: Plain> Drop for Pending<T> {
    fn drop(&mut self) {
        // Nobody wants the values; the memory is free when the GPU has written them.
        let Some((pinned, mark)) = self.flight.take() else { return };
        match self.gpu.enter().and_then(|_turn| self.gpu.wait(mark)) {
            Ok(()) => self.gpu.give_pinned(pinned),
            Err(_) => std::mem::forget(pinned),
        }
    }
}
