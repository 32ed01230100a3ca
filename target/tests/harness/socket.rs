//! Connections over the machine's own sockets.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use corebay_nvme::spec::{
    fabrics::{
        CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, ConnectData, PropertySize, connect,
        property_set,
    },
    nqn::Nqn,
    property,
    tcp::IcReq,
};
use zerocopy::IntoBytes;

use super::{
    host::CC_ENABLED,
    wire::{Connection, Payload, Pipe},
    world::host_nqn,
};

/// How long a target may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

impl Pipe for TcpStream {
    fn send_all(&mut self, bytes: &[u8]) {
        self.write_all(bytes).unwrap();
    }

    fn receive(&mut self, into: &mut [u8]) -> usize {
        self.read(into)
            .expect("the target answers within the time limit")
    }
}

/// Connects a queue, and enables the controller by an admin queue.
pub fn queue(
    to: SocketAddr,
    subsystem: &Nqn,
    dgst: u8,
    (qid, depth): (u16, u16),
    cntlid: u16,
) -> (Connection<TcpStream>, u16) {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut queue = Connection::open(stream, &IcReq::new(0, dgst, 3));
    let data = ConnectData::new([9; 16], cntlid, subsystem, &host_nqn(1));
    let sqe = connect(qid, depth - 1, CATTR_DISABLE_SQ_FLOW_CONTROL, 0);
    let cntlid = queue
        .command(sqe, Payload::Capsule(data.as_bytes()))
        .value() as u16;
    if qid == 0 {
        let enable = property_set(property::CC, PropertySize::Four, CC_ENABLED);
        queue.command(enable, Payload::None).ok();
    }
    (queue, cntlid)
}

/// The admin queue of a new association.
pub fn admin(to: SocketAddr, subsystem: &Nqn) -> Connection<TcpStream> {
    queue(to, subsystem, 0, (0, 32), CNTLID_DYNAMIC).0
}
