//! Recorded work that is launched as a whole.

use std::mem::take;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::arena::Arena;
use super::driver::cu;
use super::gpu::{Gpu, lock};
use super::pool::Capture;
use crate::Result;

/// Memory that only graphs use. Graphs that share it run one after another, so each may overwrite what others left;
/// buffers that live on after the capture stay untouched.
#[derive(Clone)]
pub struct GraphMemory(Arc<Private>);

/// The segments of a [`GraphMemory`]; they live as long as a graph or a buffer needs them.
pub(super) struct Private {
    gpu: &'static Gpu,
    pub(super) arena: Mutex<Arena>,
}

impl Drop for Private {
    fn drop(&mut self) {
        let segments = lock(&self.arena).release(true);
        self.gpu.release_private(segments);
    }
}

impl GraphMemory {
    /// Memory for graphs of one GPU; empty until a capture allocates.
    #[must_use]
    pub fn new(gpu: &'static Gpu) -> Self {
        Self(Arc::new(Private { gpu, arena: Mutex::default() }))
    }

    /// Bytes taken from the driver.
    #[must_use]
    pub fn bytes(&self) -> usize {
        lock(&self.0.arena).reserved()
    }
}

/// Work of a GPU, ready to be launched any number of times.
pub struct Graph {
    gpu: &'static Gpu,
    exec: CUgraphExec,
    /// Blocks of the pool that the graph uses and whose buffers are gone.
    kept: Vec<u64>,
    /// How often each kernel is in it.
    kernels: Vec<(usize, u64)>,
    _memory: Arc<Private>,
}

// SAFETY: the driver's handle may be used from every thread; launches take the GPU's turn.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Gpu {
    /// Records what `f` launches, without running it. Other threads wait meanwhile.
    ///
    /// Buffers made by `f` lie in `memory`. A buffer that was made before is kept by the graph if `f` drops it;
    /// otherwise the caller has to keep it as long as the graph. Run the work once before: kernels and cuBLASLt load at
    /// first use, and loading is not captured.
    ///
    /// # Errors
    /// Those of `f`, and of the driver; the stream is usable again.
    pub fn capture(&'static self, memory: &GraphMemory, f: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let _alone = self.enter_alone()?;
        let before = self.launch_counts();
        let mut session = Session::begin(self, memory)?;
        let outcome = f();
        let kernels = self.take_back_counts(&before);
        let (graph, kept) = session.end();
        let result = outcome.and(graph).and_then(|graph| self.instantiate(graph.0));
        match result {
            Ok(exec) => Ok(Graph { gpu: self, exec, kept, kernels, _memory: Arc::clone(&memory.0) }),
            Err(e) => {
                lock(&self.pool).give_kept(&kept);
                Err(e)
            }
        }
    }

    fn instantiate(&self, graph: CUgraph) -> Result<CUgraphExec> {
        let mut exec = null_mut();
        // SAFETY: the graph is alive; writes one handle.
        unsafe { cu!(cuGraphInstantiateWithFlags(&raw mut exec, graph, 0)) }?;
        // The first launch need not upload it.
        // SAFETY: `exec` was just made; the stream is not capturing any more.
        unsafe { cu!(cuGraphUpload(exec, self.stream)) }?;
        Ok(exec)
    }
}

/// A capture that is under way; it ends with the value, also when the captured code panics.
struct Session {
    gpu: &'static Gpu,
    open: bool,
}

/// A captured graph, destroyed with the value.
struct Captured(CUgraph);

impl Drop for Captured {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: from cuStreamEndCapture, destroyed once. Its executable form does not need it.
            unsafe { cudarc::driver::sys::cuGraphDestroy(self.0) };
        }
    }
}

impl Session {
    fn begin(gpu: &'static Gpu, memory: &GraphMemory) -> Result<Self> {
        // Relaxed: memory may be allocated and kernels loaded meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: this thread has the stream alone.
        unsafe { cu!(cuStreamBeginCapture_v2(gpu.stream, mode)) }?;
        lock(&gpu.pool).capture = Some(Capture { memory: Arc::clone(&memory.0), kept: Vec::new() });
        Ok(Self { gpu, open: true })
    }

    /// The graph, and the blocks outside its memory that it uses.
    fn end(&mut self) -> (Result<Captured>, Vec<u64>) {
        self.open = false;
        let capture = lock(&self.gpu.pool).capture.take();
        let mut graph = null_mut();
        // SAFETY: this thread began the capture. After a failure inside, no graph is written.
        let ended = unsafe { cu!(cuStreamEndCapture(self.gpu.stream, &raw mut graph)) };
        let graph = Captured(graph);
        (ended.map(|()| graph), capture.map(|mut capture| take(&mut capture.kept)).unwrap_or_default())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.open {
            let (_, kept) = self.end();
            lock(&self.gpu.pool).give_kept(&kept);
        }
    }
}

impl Graph {
    /// Runs it after all work so far.
    ///
    /// # Errors
    /// When the driver fails, or inside a capture.
    pub fn launch(&self) -> Result<()> {
        let _turn = self.gpu.enter()?;
        self.gpu.refuse_capture("the launch of a graph")?;
        // SAFETY: the executable graph and the memory it uses live as long as `self`.
        unsafe { cu!(cuGraphLaunch(self.exec, self.gpu.stream)) }?;
        self.gpu.add_counts(&self.kernels);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by cuGraphInstantiate, destroyed once; the driver waits for a launch that runs.
        let _ = self.gpu.enter().map(|_turn| unsafe { cudarc::driver::sys::cuGraphExecDestroy(self.exec) });
        lock(&self.gpu.pool).give_kept(&self.kept);
    }
}
