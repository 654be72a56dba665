//! What is queued again and again, recorded once.

use std::ptr;

use cudarc::driver::sys;

use super::context::check;
use crate::Error;
use crate::cuda::Graph;

/// All recordings of a device, until it is dropped.
#[derive(Default)]
pub(super) struct Graphs {
    ready: Vec<sys::CUgraphExec>,
}

// SAFETY: the handles are the driver's, which takes them from any thread that has bound the context.
unsafe impl Send for Graphs {}

/// Begins a recording. The context is bound.
pub(super) fn begin(stream: sys::CUstream) -> Result<(), Error> {
    // Relaxed: another model's thread may allocate meanwhile, and the vendor's library load a kernel.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive, and not the default one, which cannot record.
    check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })
}

impl Graphs {
    /// Ends the recording. The context is bound.
    pub(super) fn end(&mut self, stream: sys::CUstream) -> Result<Graph, Error> {
        let mut graph = ptr::null_mut();
        // SAFETY: the stream is alive, the place outlives the call.
        check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(stream, &mut graph) })?;
        let mut ready = ptr::null_mut();
        // SAFETY: the graph was just made, and what is instantiated does not need it any more.
        let made = unsafe {
            let made = check("cuGraphInstantiate", sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0));
            let _ = sys::cuGraphDestroy(graph);
            made
        };
        made?;
        let number = u32::try_from(self.ready.len()).expect("some hundreds");
        self.ready.push(ready);
        // SAFETY: both are alive. Otherwise the first launch would carry it to the device.
        check("cuGraphUpload", unsafe { sys::cuGraphUpload(ready, stream) })?;
        Ok(Graph(number))
    }

    /// Queues a recording. The context is bound.
    pub(super) fn launch(&self, graph: Graph, stream: sys::CUstream) -> Result<(), Error> {
        let missing = || Error::Device("a recording of another device".into());
        let ready = *self.ready.get(graph.0 as usize).ok_or_else(missing)?;
        // SAFETY: both are alive.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(ready, stream) })
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for ready in self.ready.drain(..) {
            // SAFETY: made once and destroyed once; who drops it has waited and bound the context.
            let _ = unsafe { sys::cuGraphExecDestroy(ready) };
        }
    }
}
