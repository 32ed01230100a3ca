//! A host's side of one NVMe/TCP connection: PDUs as they are, right ones and wrong ones.

use std::{collections::HashMap, io::IoSliceMut, rc::Rc};

use corebay_core::net::Stream;
use corebay_nvme::{
    digest::crc32c,
    spec::{
        command::SubmissionEntry,
        completion::CompletionEntry,
        sgl::SglDescriptor,
        status::Status,
        tcp::{
            C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER,
            FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS, H2cData, IcReq, IcResp, PduType, R2t, TermReq,
        },
    },
};
use zerocopy::{FromBytes, IntoBytes};

use super::{net::MemStream, world::World};

/// A byte stream to the target, seen from a host. A receive waits; 0 bytes are the end.
pub trait Pipe {
    fn send_all(&mut self, bytes: &[u8]);
    fn receive(&mut self, into: &mut [u8]) -> usize;
}

/// A stream of a [`World`]: whoever waits on it turns the world.
pub struct WorldPipe {
    pub world: Rc<World>,
    pub stream: MemStream,
}

impl Pipe for WorldPipe {
    fn send_all(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let stream = &mut self.stream;
            let taken = self.world.wait_for("the target takes bytes", || {
                match stream.send(&[std::io::IoSlice::new(left)]) {
                    Ok(taken) => Some(taken),
                    // It has closed: what is sent now is lost, as on a real network.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                        Some(left.len())
                    }
                    Err(_) => None,
                }
            });
            left = &left[taken..];
        }
    }

    fn receive(&mut self, into: &mut [u8]) -> usize {
        let stream = &mut self.stream;
        self.world.wait_for("the target sends bytes", || {
            stream.receive(&mut [IoSliceMut::new(into)]).ok()
        })
    }
}

/// What a target sends.
#[derive(Debug)]
pub enum Pdu {
    IcResp(IcResp),
    Completion(CompletionEntry),
    Data {
        cid: u16,
        offset: usize,
        last: bool,
        success: bool,
        data: Vec<u8>,
    },
    R2t(R2t),
    Terminate {
        fes: u16,
        fei: u32,
        header: Vec<u8>,
    },
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    pub status: Status,
    pub result: u64,
    pub data: Vec<u8>,
    pub sqhd: u16,
    /// There was no response capsule: the data said that the command succeeded.
    pub implied: bool,
}

impl Completed {
    /// The data of a successful command.
    #[track_caller]
    pub fn ok(self) -> Vec<u8> {
        assert!(self.status.is_success(), "{}", self.status);
        self.data
    }

    /// The result of a successful command.
    #[track_caller]
    pub fn value(self) -> u64 {
        assert!(self.status.is_success(), "{}", self.status);
        self.result
    }
}

/// A command's data.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    None,
    /// So many bytes to the host.
    ToHost(usize),
    /// In the capsule.
    Capsule(&'a [u8]),
    /// When the target asks for them.
    Asked(&'a [u8]),
}

#[derive(Default)]
struct Outstanding {
    send: Vec<u8>,
    received: Vec<u8>,
}

/// One connection. PDUs are sent with the digests that were negotiated.
pub struct Connection<P> {
    pub pipe: P,
    pub header_digest: bool,
    pub data_digest: bool,
    pub maxh2cdata: usize,
    /// R2Ts are answered by themselves.
    pub answers_r2t: bool,
    /// R2Ts that were not answered.
    pub r2ts: Vec<R2t>,
    /// The most R2Ts of one command that were outstanding.
    pub alignment: usize,
    next_cid: u16,
    outstanding: HashMap<u16, Outstanding>,
    done: HashMap<u16, Completed>,
    /// Commands in the order that they were completed.
    pub order: Vec<u16>,
}

impl<P: Pipe> Connection<P> {
    /// A connection that has not sent anything.
    pub fn raw(pipe: P) -> Self {
        Self {
            pipe,
            header_digest: false,
            data_digest: false,
            maxh2cdata: 0,
            answers_r2t: true,
            r2ts: Vec::new(),
            alignment: 4,
            next_cid: 0,
            outstanding: HashMap::new(),
            done: HashMap::new(),
            order: Vec::new(),
        }
    }

    /// A connection that is set up as `request` asks.
    pub fn open(pipe: P, request: &IcReq) -> Self {
        let mut connection = Self::raw(pipe);
        connection.pipe.send_all(request.as_bytes());
        let Some(Pdu::IcResp(response)) = connection.pdu() else {
            panic!("no ICResp came")
        };
        connection.header_digest = response.dgst & DGST_HEADER != 0;
        connection.data_digest = response.dgst & DGST_DATA != 0;
        connection.maxh2cdata = response.maxh2cdata.get() as usize;
        connection.alignment = (usize::from(request.hpda) + 1) * 4;
        assert_eq!(response.cpda, 0);
        connection
    }

    /// A PDU of this header and data, with the digests that were negotiated.
    pub fn dress(&self, header: &[u8], data: &[u8]) -> Vec<u8> {
        let (mut common, _) = CommonHeader::read_from_prefix(header).unwrap();
        common = common.with_digests(self.header_digest, self.data_digest, 0);
        let mut bytes = [common.as_bytes(), &header[8..]].concat();
        if self.header_digest {
            bytes.extend(crc32c(&bytes).to_le_bytes());
        }
        bytes.extend(data);
        if self.data_digest && !data.is_empty() {
            bytes.extend(crc32c(data).to_le_bytes());
        }
        bytes
    }

    /// Sends a PDU.
    pub fn send(&mut self, header: &[u8], data: &[u8]) {
        let bytes = self.dress(header, data);
        self.pipe.send_all(&bytes);
    }

    /// A capsule, with the command identifier and descriptor that go with its data.
    pub fn capsule(&mut self, sqe: SubmissionEntry, payload: Payload<'_>) -> (u16, Vec<u8>) {
        let cid = self.next_cid;
        self.next_cid = (self.next_cid + 1) % 0x8000;
        let mut sqe = sqe.with_cid(cid);
        let mut outstanding = Outstanding::default();
        let mut data = &[][..];
        match payload {
            Payload::None => sqe.set_sgl(SglDescriptor::transport(0)),
            Payload::ToHost(len) => sqe.set_sgl(SglDescriptor::transport(len as u32)),
            Payload::Capsule(bytes) => {
                sqe.set_sgl(SglDescriptor::offset_block(0, bytes.len() as u32));
                data = bytes;
            }
            Payload::Asked(bytes) => {
                sqe.set_sgl(SglDescriptor::transport(bytes.len() as u32));
                outstanding.send = bytes.to_vec();
            }
        }
        self.outstanding.insert(cid, outstanding);
        let capsule = CapsuleCmd::new(sqe, data.len() as u32);
        (cid, self.dress(capsule.as_bytes(), data))
    }

    /// Sends a command.
    pub fn submit(&mut self, sqe: SubmissionEntry, payload: Payload<'_>) -> u16 {
        let (cid, bytes) = self.capsule(sqe, payload);
        self.pipe.send_all(&bytes);
        cid
    }

    /// Sends a command exactly as it is.
    pub fn submit_as_is(&mut self, sqe: SubmissionEntry, data: &[u8]) -> u16 {
        let cid = sqe.cid.get();
        self.outstanding.insert(cid, Outstanding::default());
        let capsule = CapsuleCmd::new(sqe, data.len() as u32);
        self.send(capsule.as_bytes(), data);
        cid
    }

    /// Executes a command.
    #[track_caller]
    pub fn command(&mut self, sqe: SubmissionEntry, payload: Payload<'_>) -> Completed {
        let cid = self.submit(sqe, payload);
        self.complete(cid)
    }

    /// Waits for a command.
    #[track_caller]
    pub fn complete(&mut self, cid: u16) -> Completed {
        loop {
            if let Some(done) = self.done.remove(&cid) {
                return done;
            }
            assert!(self.step(), "the connection ended before command {cid} did");
        }
    }

    /// Waits for whichever command completes next.
    #[track_caller]
    pub fn complete_any(&mut self) -> (u16, Completed) {
        loop {
            if let Some(&cid) = self.done.keys().next() {
                return (cid, self.done.remove(&cid).unwrap());
            }
            assert!(self.step(), "the connection ended");
        }
    }

    /// A command that has completed already.
    pub fn take_done(&mut self, cid: u16) -> Option<Completed> {
        self.done.remove(&cid)
    }

    /// Expects a completion of this command, which was sent by other means or completes once more.
    pub fn expect(&mut self, cid: u16) {
        self.outstanding.insert(cid, Outstanding::default());
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding.len()
    }

    /// Takes one PDU; false at the end of the stream.
    #[track_caller]
    pub fn step(&mut self) -> bool {
        let Some(pdu) = self.pdu() else { return false };
        match pdu {
            Pdu::Completion(entry) => {
                let cid = entry.cid.get();
                let mut outstanding = self.outstanding.remove(&cid).expect("an unknown CID");
                let completed = Completed {
                    status: entry.status(),
                    result: entry.result(),
                    data: std::mem::take(&mut outstanding.received),
                    sqhd: entry.sqhd.get(),
                    implied: false,
                };
                self.order.push(cid);
                self.done.insert(cid, completed);
            }
            Pdu::Data {
                cid,
                offset,
                last,
                success,
                data,
            } => {
                let outstanding = self.outstanding.get_mut(&cid).expect("an unknown CCCID");
                assert_eq!(offset, outstanding.received.len(), "data out of order");
                outstanding.received.extend(data);
                assert!(last || !success, "SUCCESS without LAST_PDU");
                if success {
                    let outstanding = self.outstanding.remove(&cid).unwrap();
                    let completed = Completed {
                        status: Status::SUCCESS,
                        result: 0,
                        data: outstanding.received,
                        sqhd: 0,
                        implied: true,
                    };
                    self.order.push(cid);
                    self.done.insert(cid, completed);
                }
            }
            Pdu::R2t(r2t) if self.answers_r2t => self.answer(&r2t),
            Pdu::R2t(r2t) => self.r2ts.push(r2t),
            other => panic!("an unexpected PDU: {other:?}"),
        }
        true
    }

    /// Sends the data that an R2T asks for.
    pub fn answer(&mut self, r2t: &R2t) {
        let (cid, tag) = (r2t.cccid.get(), r2t.ttag.get());
        let (start, len) = (r2t.r2to.get() as usize, r2t.r2tl.get() as usize);
        let mut data = self.outstanding[&cid].send.clone();
        // A fuzzer sends writes with the descriptor of a read, too.
        data.resize(data.len().max(start + len), 0);
        let data = &data[start..start + len];
        let mut sent = 0;
        for piece in data.chunks(self.maxh2cdata) {
            let last = sent + piece.len() == len;
            let (offset, bytes) = ((start + sent) as u32, piece.len() as u32);
            let header = H2cData::new(cid, tag, offset, bytes, last);
            self.send(header.as_bytes(), piece);
            sent += piece.len();
        }
    }

    /// The next PDU; `None` at the end of the stream.
    #[track_caller]
    pub fn pdu(&mut self) -> Option<Pdu> {
        let mut bytes = vec![0; 8];
        if !self.fill(&mut bytes) {
            return None;
        }
        let common = CommonHeader::read_from_bytes(&bytes).unwrap();
        let plen = common.plen.get() as usize;
        let kind = common.kind().expect("a PDU type of the specification");
        assert!(!kind.is_from_host(), "a host's PDU came from the target");
        assert!(plen < 2 << 20, "a PDU of {plen} bytes");
        assert_eq!(common.hlen, kind.hlen(), "HLEN of {kind:?}");
        bytes.resize(plen, 0);
        assert!(self.fill(&mut bytes[8..]), "the stream ended within a PDU");
        Some(self.take_apart(kind, &common, &bytes))
    }

    #[track_caller]
    fn take_apart(&self, kind: PduType, common: &CommonHeader, bytes: &[u8]) -> Pdu {
        let hlen = usize::from(common.hlen);
        let (header, rest) = bytes.split_at(hlen);
        if kind.may_have_header_digest() {
            assert_eq!(common.has_header_digest(), self.header_digest, "{kind:?}");
            if self.header_digest {
                assert_eq!(rest[..4], crc32c(header).to_le_bytes(), "header digest");
            }
        }
        match kind {
            PduType::IcResp => Pdu::IcResp(IcResp::read_from_bytes(header).unwrap()),
            PduType::C2hTermReq => {
                let request = TermReq::read_from_bytes(header).unwrap();
                let (fes, fei) = (request.fes.get(), request.fei.get());
                let header = rest.to_vec();
                Pdu::Terminate { fes, fei, header }
            }
            PduType::CapsuleResp => {
                let plen = hlen + if self.header_digest { 4 } else { 0 };
                assert_eq!(bytes.len(), plen, "a response capsule has no data");
                Pdu::Completion(CapsuleResp::read_from_bytes(header).unwrap().rccqe)
            }
            PduType::R2t => Pdu::R2t(R2t::read_from_bytes(header).unwrap()),
            _ => {
                let pdu = C2hData::read_from_bytes(header).unwrap();
                let start = usize::from(common.pdo);
                let len = pdu.datal.get() as usize;
                assert_eq!(start % self.alignment, 0, "PDO is not aligned");
                assert_eq!(common.has_data_digest(), self.data_digest);
                let data = bytes[start..start + len].to_vec();
                if self.data_digest {
                    let digest = &bytes[start + len..];
                    assert_eq!(digest, crc32c(&data).to_le_bytes(), "data digest");
                } else {
                    assert_eq!(bytes.len(), start + len, "PLEN");
                }
                Pdu::Data {
                    cid: pdu.cccid.get(),
                    offset: pdu.datao.get() as usize,
                    last: common.flags & FLAG_C2H_LAST_PDU != 0,
                    success: common.flags & FLAG_C2H_SUCCESS != 0,
                    data,
                }
            }
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        let mut have = 0;
        while have < bytes.len() {
            match self.pipe.receive(&mut bytes[have..]) {
                0 => return false,
                count => have += count,
            }
        }
        true
    }

    /// Waits for the end of the stream; gives the termination request that came before it, if one
    /// did. Completions that come first are skipped.
    #[track_caller]
    pub fn ends(&mut self) -> Option<(u16, u32, Vec<u8>)> {
        let mut termination = None;
        while let Some(pdu) = self.pdu() {
            assert!(termination.is_none(), "something follows C2HTermReq");
            if let Pdu::Terminate { fes, fei, header } = pdu {
                termination = Some((fes, fei, header));
            }
        }
        termination
    }
}
