//! Launches that were decided long before, handed to the machine at once: a CUDA graph, or the emulator's own list.

use super::{Config, Device, Params, StreamId, View, Work};
use crate::Result;

/// A machine's own handle of a graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GraphId(pub u64);

/// What a graph does, one node after the other.
pub(crate) enum Node<'a> {
    /// A kernel, with the params that were recorded for it.
    Launch {
        /// Entry point and grid.
        config: Config,
        /// Of this kernel.
        params: &'a Params,
        /// What it touches.
        work: &'a Work,
    },
    /// Sets every byte.
    Fill {
        /// Which bytes.
        view: &'a View<u8>,
        /// To what.
        value: u8,
    },
}

/// Launches and fills that a machine has been told of once and carries out as often as it is asked, with neither the host's
/// work for each of them nor what lies between them in a stream.
#[derive(Debug)]
pub(crate) struct Graph {
    device: Device,
    id: GraphId,
}

impl Device {
    /// Makes a graph of `nodes`; whatever it needs of device and host memory it takes now, not when it is launched.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) or [`Error::Capacity`](crate::Error::Capacity) when the driver refuses;
    /// [`Error::Unsupported`](crate::Error::Unsupported) when it makes no graphs at all.
    ///
    /// # Safety
    /// As for [`Device::replay`], of every node, whenever the graph is launched.
    pub(crate) unsafe fn graph(&self, nodes: &[Node<'_>]) -> Result<Graph> {
        for node in nodes {
            if let Node::Fill { view, .. } = node {
                self.check_own(&view.memory.device)?;
            }
        }
        // SAFETY: the caller's promise; `Graph` owns the handle and gives it back once.
        let id = unsafe { self.machine().graph(nodes)? };
        Ok(Graph { device: self.clone(), id })
    }

    /// Enqueues all of `graph`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when the driver refuses.
    ///
    /// # Safety
    /// The memory that its nodes touch is alive until the stream has passed it.
    pub(crate) unsafe fn launch_graph(&self, stream: StreamId, graph: &Graph) -> Result<()> {
        self.check_own(&graph.device)?;
        // SAFETY: the handle is alive and this machine's; the rest is the caller's promise.
        unsafe { self.machine().launch_graph(stream, graph.id) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: `graph` made it, and nothing uses it after; what has been launched of it runs to its end.
        unsafe { self.device.machine().destroy_graph(self.id) };
    }
}
