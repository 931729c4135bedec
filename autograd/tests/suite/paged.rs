//! Attention over KV pages is packed attention, bit for bit, however the sequence was cut.

use autograd::kv::{KvPool, KvShape, PAGE_TOKENS, PagedBatch, PagedRows};
use autograd::ops::{self, Attention, Sequences};
use autograd::rng::uniform;
use autograd::{Device, Tape, Tensor};

use super::support::{assert_close, random, rope, write};

const LENGTHS: [usize; 4] = [50, 1, 16, 37];
const SHAPES: [KvShape; 4] = [
    KvShape { heads: 2, kv_heads: 1, head_dim: 8 },
    KvShape { heads: 6, kv_heads: 2, head_dim: 64 },
    KvShape { heads: 4, kv_heads: 4, head_dim: 80 },
    KvShape { heads: 9, kv_heads: 3, head_dim: 20 },
];
const POOL: usize = 40;

/// Queries, keys and values of all sequences, packed.
struct Batch {
    shape: KvShape,
    window: Option<usize>,
    qkv: Vec<f32>,
}

impl Batch {
    fn new(shape: KvShape, window: Option<usize>) -> Self {
        let tokens: usize = LENGTHS.iter().sum();
        let qkv = random(tokens * row_len(shape), 1).iter().map(|v| 2.0 * v).collect();
        Self { shape, window, qkv }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head_dim as f32).sqrt()
    }

    fn packed(&self) -> Vec<f32> {
        let KvShape { heads, kv_heads, .. } = self.shape;
        let sequences = Sequences::from_lengths(&LENGTHS);
        let op = Attention { sequences, heads, kv_heads, scale: self.scale(), window: self.window };
        let qkv = self.rows(Device::Cpu, std::slice::from_ref(&(0..LENGTHS.iter().sum())));
        ops::attention(&mut Tape::off(), op, &qkv).expect("shapes fit").to_vec()
    }

    /// Rows, several ranges after each other.
    fn rows(&self, device: Device, ranges: &[std::ops::Range<usize>]) -> Tensor {
        let width = row_len(self.shape);
        let cut = ranges.iter().flat_map(|r| &self.qkv[r.start * width..r.end * width]).copied();
        let count = ranges.iter().map(ExactSizeIterator::len).sum();
        Tensor::new(device, cut.collect(), [count, width]).expect("whole rows")
    }

    /// Feeds every sequence `chunk` tokens at a time, all sequences in one batch.
    fn paged(&self, device: Device, chunk: usize) -> Vec<f32> {
        let width = self.shape.heads * self.shape.head_dim;
        let pages = page_tables();
        let mut pool = dirty_pool(device, self.shape);
        let borders: Vec<usize> = Sequences::from_lengths(&LENGTHS).borders().to_vec();
        let mut out = vec![f32::NAN; borders[LENGTHS.len()] * width];
        for start in (0..LENGTHS[0]).step_by(chunk) {
            let live: Vec<usize> = (0..LENGTHS.len()).filter(|&s| LENGTHS[s] > start).collect();
            let ranges: Vec<_> =
                live.iter().map(|&s| borders[s] + start..borders[s] + (start + chunk).min(LENGTHS[s])).collect();
            let mut next = 0;
            let sequences: Vec<PagedRows<'_>> = live
                .iter()
                .zip(&ranges)
                .map(|(&s, range)| {
                    next += range.len();
                    let used = (range.end - borders[s]).div_ceil(PAGE_TOKENS);
                    PagedRows { rows: next - range.len()..next, position: start, pages: &pages[s][..used] }
                })
                .collect();
            let qkv = self.rows(device, &ranges);
            let batch = PagedBatch::new(&sequences);
            write(&mut pool, self.shape, 1, &qkv, &batch).expect("pages are there");
            let y = pool.attend(1, &qkv, &batch, self.scale(), self.window).expect("pages are there").to_vec();
            let targets = ranges.iter().flat_map(|r| r.clone());
            for (row, values) in targets.zip(y.chunks_exact(width)) {
                out[row * width..][..width].copy_from_slice(values);
            }
        }
        out
    }
}

/// Width of a row of queries, keys and values.
fn row_len(shape: KvShape) -> usize {
    (shape.heads + 2 * shape.kv_heads) * shape.head_dim
}

/// Pages of each sequence, dealt from a shuffled pool.
fn page_tables() -> Vec<Vec<u32>> {
    let mut free: Vec<u32> = (0..POOL as u32).collect();
    free.sort_by(|&a, &b| uniform(5, 0, u64::from(a)).total_cmp(&uniform(5, 0, u64::from(b))));
    LENGTHS.iter().map(|len| free.split_off(free.len() - len.div_ceil(PAGE_TOKENS))).collect()
}

/// A pool whose pages an earlier sequence has filled, of all things with what a broken model writes.
fn dirty_pool(device: Device, shape: KvShape) -> KvPool {
    let mut pool = KvPool::new(device, shape, 2, POOL).expect("memory");
    let rows = POOL * PAGE_TOKENS;
    let width = row_len(shape);
    let old = Tensor::new(device, vec![f32::NAN; rows * width], [rows, width]).expect("whole rows");
    let pages: Vec<u32> = (0..POOL as u32).collect();
    write(&mut pool, shape, 1, &old, &PagedBatch::new(&[PagedRows { rows: 0..rows, position: 0, pages: &pages }]))
        .expect("the pool is whole");
    pool
}

fn bits(values: &[f32]) -> Vec<u32> {
    assert!(values.iter().all(|v| v.is_finite()));
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn any_chunking_over_pages_equals_the_packed_batch_bit_for_bit() {
    for shape in SHAPES {
        for window in [None, Some(1), Some(5), Some(16), Some(20)] {
            let batch = Batch::new(shape, window);
            let packed = bits(&batch.packed());
            for chunk in [1, 5, 16, 33, 50] {
                assert!(packed == bits(&batch.paged(Device::Cpu, chunk)), "{shape:?} window {window:?} chunk {chunk}");
            }
        }
    }
}

#[test]
fn the_reference_pool_agrees() {
    for (shape, window, chunk) in [(SHAPES[0], None, 16), (SHAPES[1], Some(20), 33), (SHAPES[3], Some(5), 7)] {
        let batch = Batch::new(shape, window);
        assert_close("paged", &batch.paged(Device::Reference, chunk), &batch.packed(), 1e-5);
    }
}

#[test]
fn rows_are_normed_and_rotated_on_their_way_to_pages() {
    let shape = SHAPES[1];
    for device in [Device::Cpu, Device::Reference] {
        let tensor =
            |shape: [usize; 2], key| Tensor::new(device, random(shape[0] * shape[1], key), shape).expect("whole");
        let (qkv, norms) = (tensor([20, row_len(shape)], 1), [2, 3].map(|key| tensor([1, shape.head_dim], key)));
        let norms = Some([&norms[0], &norms[1]]);
        let batch = PagedBatch::new(&[PagedRows { rows: 0..20, position: 0, pages: &[1, 0] }]);
        let mut pool = KvPool::new(device, shape, 1, 2).expect("memory");
        let written = pool.write(0, rope(shape, &batch, 0.1), &qkv, norms, &batch).expect("pages are there");
        let want = ops::qk_rope(&mut Tape::off(), rope(shape, &batch, 0.1), &qkv, norms).expect("shapes fit");
        assert_eq!(written.to_vec(), want.to_vec());
        let KvShape { heads, kv_heads, .. } = shape;
        let op = Attention { sequences: Sequences::from_lengths(&[20]), heads, kv_heads, scale: 0.2, window: None };
        let got = pool.attend(0, &written, &batch, 0.2, None).expect("pages are there").to_vec();
        assert_close("attention", &got, &ops::attention(&mut Tape::off(), op, &want).expect("fits").to_vec(), 1e-5);
    }
}

#[test]
fn a_copied_page_is_its_own() {
    let shape = SHAPES[0];
    for device in [Device::Cpu, Device::Reference] {
        let tensor = |rows, key| Tensor::new(device, random(rows * row_len(shape), key), [rows, row_len(shape)]);
        let mut pool = KvPool::new(device, shape, 2, 4).expect("memory");
        let old = tensor(10, 1).expect("whole rows");
        for layer in 0..2 {
            write(
                &mut pool,
                shape,
                layer,
                &old,
                &PagedBatch::new(&[PagedRows { rows: 0..10, position: 0, pages: &[2] }]),
            )
            .expect("page 2 is there");
        }
        pool.copy_page(2, 0).expect("memory");
        let query = tensor(1, 3).expect("whole rows");
        let look = |pool: &KvPool, layer, page: u32| {
            let rows = PagedBatch::new(&[PagedRows { rows: 0..1, position: 9, pages: &[page] }]);
            pool.attend(layer, &query, &rows, 0.3, None).expect("pages are there").to_vec()
        };
        let before = look(&pool, 1, 2);
        assert_eq!(before, look(&pool, 1, 0));
        assert_eq!(before, look(&pool, 0, 0));
        let new = tensor(1, 4).expect("whole rows");
        write(&mut pool, shape, 1, &new, &PagedBatch::new(&[PagedRows { rows: 0..1, position: 4, pages: &[0] }]))
            .expect("page 0 is there");
        assert_eq!(before, look(&pool, 1, 2), "the original saw the write");
        assert_ne!(before, look(&pool, 1, 0), "the copy did not");
    }
}

#[test]
fn a_window_hides_what_is_before_it() {
    let batch = Batch::new(SHAPES[1], Some(5));
    let mut other = Batch::new(SHAPES[1], Some(5));
    // The first sequence's tokens 0..45 are out of sight of its last token, 49.
    let keys = other.shape.heads * other.shape.head_dim;
    for row in other.qkv.chunks_exact_mut(row_len(other.shape)).take(45) {
        row[keys..].fill(9.0);
    }
    let (a, b) = (batch.packed(), other.packed());
    let width = batch.shape.heads * batch.shape.head_dim;
    assert_eq!(a[49 * width..50 * width], b[49 * width..50 * width]);
    assert_ne!(a[48 * width..49 * width], b[48 * width..49 * width]);
}
