//! Owns setting up an association: ICReq, Connect, enabling the controller, connections of I/O
//! queues. Blocking, one command at a time: nothing of it is measured.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use corebay_nvme::spec::{
    command::{SubmissionEntry, admin},
    completion::CompletionEntry,
    fabrics::{
        CATTR_DISABLE_SQ_FLOW_CONTROL, CNTLID_DYNAMIC, ConnectData, ConnectSuccess, PropertySize,
        connect, property_get, property_set,
    },
    nqn::Nqn,
    property::{CC, CSTS, Cc, Csts, IOCQES_16, IOSQES_64},
    tcp::{CapsuleCmd, CapsuleResp, CommonHeader, IcReq, IcResp, PduType},
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// How long a target may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries of the admin queue, 0's based.
const ADMIN_SQSIZE: u16 = 31;

/// A connection that is set up, with no command outstanding.
pub struct Connection {
    stream: TcpStream,
    next_cid: u16,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(IcReq::new(0, 0, 0).as_bytes())?;
        let mut response = IcResp::new_zeroed();
        stream
            .read_exact(response.as_mut_bytes())
            .context("ICResp")?;
        ensure!(
            response.common.kind() == Some(PduType::IcResp) && response.dgst == 0,
            "the target answered ICReq with {:?}",
            response.common
        );
        Ok(Self {
            stream,
            next_cid: 0,
        })
    }

    /// Sends a command with `data` in its capsule and waits for its completion, which must be a
    /// success.
    pub fn command(&mut self, entry: SubmissionEntry, data: &[u8]) -> Result<CompletionEntry> {
        let cid = self.next_cid;
        self.next_cid = (cid + 1) % 1024;
        let capsule = CapsuleCmd::new(entry.with_cid(cid), u32::try_from(data.len())?);
        self.stream
            .write_all(&[capsule.as_bytes(), data].concat())?;
        let mut response = [0; size_of::<CapsuleResp>()];
        let (common, rest) = response.split_at_mut(size_of::<CommonHeader>());
        self.stream
            .read_exact(common)
            .context("wait for a completion")?;
        let header = CommonHeader::read_from_bytes(common).ok();
        if header.and_then(|header| header.kind()) != Some(PduType::CapsuleResp) {
            bail!("the target answered a command with {header:?}");
        }
        self.stream.read_exact(rest)?;
        let completion = CompletionEntry::read_from_bytes(rest)
            .ok()
            .context("24 bytes")?;
        ensure!(
            completion.cid.get() == cid,
            "the completion of another command"
        );
        let status = completion.status.get() >> 1;
        ensure!(
            status == 0,
            "a command failed with status {status:#x}: {entry:?}"
        );
        Ok(completion)
    }

    /// The connection's socket.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// A host's association with a controller.
pub struct Association {
    admin: Connection,
    address: SocketAddr,
    cntlid: u16,
    names: (Nqn, Nqn, [u8; 16]),
}

impl Association {
    /// Connects host number `host` to the subsystem and enables the controller.
    pub fn open(address: SocketAddr, subsystem: &Nqn, host: u16, kato_ms: u32) -> Result<Self> {
        let mut host_id = *b"corebay-bench...";
        host_id[14..].copy_from_slice(&host.to_le_bytes());
        let host_nqn = format!("nqn.2026-01.bench.corebay:host-{host}").parse();
        let host_nqn: Nqn = host_nqn.ok().context("a host NQN")?;
        let mut admin = Connection::open(address)?;
        let data = ConnectData::new(host_id, CNTLID_DYNAMIC, subsystem, &host_nqn);
        let entry = connect(0, ADMIN_SQSIZE, 0, kato_ms);
        let completion = admin.command(entry, data.as_bytes()).context("Connect")?;
        let cntlid = ConnectSuccess::from_dw0(completion.dw0.get()).cntlid;
        let enable = Cc::default().with_en(true);
        let enable = enable.with_iosqes(IOSQES_64).with_iocqes(IOCQES_16);
        let entry = property_set(CC, PropertySize::Four, enable.0.into());
        admin.command(entry, &[]).context("enable")?;
        while !Csts(
            admin
                .command(property_get(CSTS, PropertySize::Four), &[])?
                .dw0
                .get(),
        )
        .rdy()
        {}
        Ok(Self {
            admin,
            address,
            cntlid,
            names: (subsystem.clone(), host_nqn, host_id),
        })
    }

    /// Connects an I/O queue.
    pub fn io_queue(&self, qid: u16, entries: u16, flow_control: bool) -> Result<Connection> {
        let (subsystem, host, host_id) = &self.names;
        let mut queue = Connection::open(self.address)?;
        let data = ConnectData::new(*host_id, self.cntlid, subsystem, host);
        let cattr = if flow_control {
            0
        } else {
            CATTR_DISABLE_SQ_FLOW_CONTROL
        };
        let entry = connect(qid, entries - 1, cattr, 0);
        queue
            .command(entry, data.as_bytes())
            .context("Connect of an I/O queue")?;
        Ok(queue)
    }

    /// Sends a Keep Alive.
    pub fn keep_alive(&mut self) -> Result<()> {
        let entry = SubmissionEntry::new(admin::KEEP_ALIVE, 0);
        self.admin.command(entry, &[]).context("Keep Alive")?;
        Ok(())
    }
}
