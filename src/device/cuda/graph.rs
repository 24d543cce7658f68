//! CUDA graphs: made node by node, not captured from a stream, since what runs is known long before.

use std::ptr::{null, null_mut};

use cudarc::driver::sys::{self, CUresult};

use super::{Cuda, Current, GraphId, Node, StreamId};
use crate::device::Config;
use crate::{Error, Result};

/// Is destroyed when it goes.
struct Template<'a> {
    cuda: &'a Cuda,
    graph: sys::CUgraph,
    /// The node that the next one comes after.
    last: Option<sys::CUgraphNode>,
}

impl Drop for Template<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `make_graph`; what was instantiated of it does not need it.
        let _ = unsafe { (self.cuda.driver.cuGraphDestroy)(self.graph) };
    }
}

impl Cuda {
    /// See [`super::super::Machine::graph`].
    pub(super) fn make_graph(&self, nodes: &[Node<'_>]) -> Result<GraphId> {
        let current = self.current()?;
        let failed = |e| self.error(format!("make a graph of {} nodes", nodes.len()), e);
        let mut graph = null_mut();
        // SAFETY: the out-pointer is a local.
        unsafe { (self.driver.cuGraphCreate)(&mut graph, 0) }.ok().map_err(|e| {
            match e.is(CUresult::CUDA_ERROR_NOT_SUPPORTED) {
                true => Error::Unsupported(format!("{} has no CUDA graphs", self.name)),
                false => failed(e),
            }
        })?;
        let mut template = Template { cuda: self, graph, last: None };
        for node in nodes {
            template.add(node, &current)?;
        }
        let mut made = null_mut();
        // SAFETY: the graph is alive; the out-pointer is a local.
        unsafe { (self.driver.cuGraphInstantiateWithFlags)(&mut made, graph, 0) }.ok().map_err(failed)?;
        // Otherwise the first launch would send it to the device, in the middle of a run.
        // SAFETY: both handles are alive.
        let uploaded = unsafe { (self.driver.cuGraphUpload)(made, current.stream(StreamId::Compute)) };
        uploaded.ok().map_err(|e| {
            // SAFETY: it was made above, and nobody else has it.
            let _ = unsafe { (self.driver.cuGraphExecDestroy)(made) };
            failed(e)
        })?;
        self.add(&current);
        Ok(GraphId(made as u64))
    }
}

impl Template<'_> {
    /// Behind the nodes that are there.
    fn add(&mut self, node: &Node<'_>, current: &Current<'_>) -> Result<()> {
        let (cuda, driver) = (self.cuda, self.cuda.driver);
        let (before, num_before) = match &self.last {
            Some(last) => (std::ptr::from_ref(last), 1),
            None => (null(), 0),
        };
        let mut added = null_mut();
        match node {
            Node::Launch { config: Config { kernel, grid }, params, .. } => {
                let function = cuda.function_for(kernel, params.bytes, current)?;
                let mut arguments = [params.as_ptr().cast_mut()];
                let node = sys::CUDA_KERNEL_NODE_PARAMS {
                    func: function.handle,
                    gridDimX: grid[0],
                    gridDimY: grid[1],
                    gridDimZ: grid[2],
                    blockDimX: kernel.threads,
                    blockDimY: 1,
                    blockDimZ: 1,
                    sharedMemBytes: kernel.smem_bytes,
                    kernelParams: arguments.as_mut_ptr(),
                    extra: null_mut(),
                    kern: null_mut(),
                    ctx: null_mut(),
                };
                // SAFETY: graph and node before are alive; the function is loaded, and `params` its params struct (size
                // compared), copied by the driver before the call returns.
                let code = unsafe {
                    (driver.cuGraphAddKernelNode_v2)(&mut added, self.graph, before, num_before, &node)
                };
                let operation = || format!("make a graph with kernel {} of grid {grid:?}", kernel.name);
                code.ok()
                    .map_err(|e| cuda.no_code(kernel, e).unwrap_or_else(|| cuda.error(operation(), e)))?;
            }
            Node::Fill { view, .. } if view.is_empty() => return Ok(()),
            Node::Fill { view, value } => {
                let node = sys::CUDA_MEMSET_NODE_PARAMS {
                    dst: view.address(),
                    pitch: 0,
                    value: u32::from(*value),
                    elementSize: 1,
                    width: view.num_bytes(),
                    height: 1,
                };
                // SAFETY: as above; the view lies in live memory.
                let code = unsafe {
                    (driver.cuGraphAddMemsetNode)(
                        &mut added,
                        self.graph,
                        before,
                        num_before,
                        &node,
                        current.context.handle,
                    )
                };
                let operation = || format!("make a graph with a fill of {} bytes", view.num_bytes());
                code.ok().map_err(|e| cuda.error(operation(), e))?;
            }
        }
        self.last = Some(added);
        Ok(())
    }
}
