//! A target for tests: speaks PDUs, keeps one namespace in memory, and misbehaves as told.

use std::{collections::VecDeque, io, io::IoSlice, io::IoSliceMut};

use corebay_core::{net::Stream, rng::Rng};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::net::MemStream;
use crate::{
    digest::crc32c,
    fabrics::Digests,
    spec::{
        command::{SubmissionEntry, admin, nvm},
        completion::CompletionEntry,
        fabrics::{Connect, ConnectSuccess, PropertyGet, PropertySet, fctype},
        identify::{IdentifyController, IdentifyNamespace, NamespaceList, cns},
        property::{self, Cap, Cc, Csts, Shn, Shst},
        sgl::Sgl,
        status::Status,
        tcp::{
            C2hData, CapsuleCmd, CapsuleResp, CommonHeader, DGST_DATA, DGST_HEADER,
            FLAG_C2H_LAST_PDU, FLAG_C2H_SUCCESS, FatalErrorStatus, H2cData, IcReq, IcResp, PduType,
            R2t, TermReq,
        },
    },
};

/// The namespace's block.
pub const BLOCK: usize = 512;
/// The namespace's blocks.
pub const BLOCKS: usize = 4096;
/// The CNTLID of every controller.
pub const CNTLID: u16 = 7;

/// How the target behaves.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The digests it grants where asked.
    pub digests: Digests,
    pub cpda: u8,
    pub maxh2cdata: u32,
    /// The in-capsule data it takes on I/O queues.
    pub in_capsule: u32,
    /// The most bytes of one R2T, and of one C2HData PDU.
    pub chunk: u32,
    /// All R2Ts of a command at once, up to what the host allows.
    pub many_r2ts: bool,
    pub success_flag: bool,
    /// Answers in random order.
    pub shuffle: bool,
    /// I/O commands to answer before the connection is dropped.
    pub drop_after: Option<u64>,
    /// I/O commands are taken and never answered.
    pub silent: bool,
    /// The granted I/O queues, and the queue entries less one.
    pub queues: u16,
    pub mqes: u16,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            digests: Digests {
                header: true,
                data: true,
            },
            cpda: 0,
            maxh2cdata: 131_072,
            in_capsule: 4096,
            chunk: u32::MAX,
            many_r2ts: false,
            success_flag: true,
            shuffle: false,
            drop_after: None,
            silent: false,
            queues: 16,
            mqes: 127,
        }
    }
}

/// A command that waits for its data.
struct Awaiting {
    sqe: SubmissionEntry,
    data: Vec<u8>,
    got: usize,
    asked: usize,
    ttag: u16,
}

/// One connection, as the target sees it.
pub struct Peer {
    stream: MemStream,
    received: Vec<u8>,
    to_send: VecDeque<u8>,
    /// PDUs by command: one command's are in order, those of several mix.
    answers: Vec<VecDeque<Vec<u8>>>,
    digests: Digests,
    maxr2t: usize,
    awaiting: Vec<Awaiting>,
    io_queue: bool,
    io_answered: u64,
    /// The termination request that the host has sent.
    pub terminated: Option<(u16, u32)>,
    pub gone: bool,
}

/// The target: connections and what they share.
pub struct FakeTarget {
    pub manner: Manner,
    pub disk: Vec<u8>,
    pub peers: Vec<Peer>,
    pub rng: Rng,
    /// Every I/O command that was executed.
    pub executed: Vec<SubmissionEntry>,
    pub keep_alives: u64,
    pub shut_down: bool,
    pub connects: u64,
    /// Overrides the answer to Get Log Page; nothing is Invalid Field.
    pub log: Option<Box<dyn FnMut(admin::GetLogPage) -> Vec<u8>>>,
    cc: Cc,
}

impl FakeTarget {
    pub fn new(seed: u64, manner: Manner) -> Self {
        Self {
            manner,
            disk: vec![0; BLOCK * BLOCKS],
            peers: Vec::new(),
            rng: Rng::from_seed(seed),
            executed: Vec::new(),
            keep_alives: 0,
            shut_down: false,
            connects: 0,
            log: None,
            cc: Cc::default(),
        }
    }

    pub fn accept(&mut self, streams: Vec<MemStream>) {
        for stream in streams {
            self.peers.push(Peer {
                stream,
                received: Vec::new(),
                to_send: VecDeque::new(),
                answers: Vec::new(),
                digests: Digests::default(),
                maxr2t: 1,
                awaiting: Vec::new(),
                io_queue: false,
                io_answered: 0,
                terminated: None,
                gone: false,
            });
        }
    }

    /// Receives, executes, answers.
    pub fn turn(&mut self) {
        let mut peers = std::mem::take(&mut self.peers);
        for peer in &mut peers {
            peer.receive();
            while let Some(pdu) = peer.next_pdu() {
                peer.take(&pdu, self);
            }
            peer.queue_answers(self);
            peer.send();
        }
        peers.retain(|peer| !peer.gone || peer.terminated.is_some());
        peers.append(&mut self.peers);
        self.peers = peers;
    }

    /// Drops all connections.
    pub fn drop_all(&mut self) {
        self.peers.clear();
    }

    fn identify_controller(&self) -> IdentifyController {
        let mut identify = IdentifyController::new_zeroed();
        identify.cntlid = CNTLID.into();
        identify.mdts = 8;
        identify.ioccsz = ((64 + self.manner.in_capsule) / 16).into();
        identify.iorcsz = 1.into();
        identify.kas = 10.into();
        identify
    }

    fn property(&self, offset: u32) -> u64 {
        match offset {
            property::CAP => {
                let cap = Cap::default().with_mqes(self.manner.mqes).with_to(2);
                cap.with_css(property::CAP_CSS_NVM).0
            }
            property::VS => u64::from(property::Vs::V2_1.0),
            property::CC => u64::from(self.cc.0),
            property::CSTS => {
                let csts = Csts::default().with_rdy(self.cc.en());
                let down = self.cc.shn() == Shn::Normal;
                u64::from(
                    if down {
                        csts.with_shst(Shst::Complete)
                    } else {
                        csts
                    }
                    .0,
                )
            }
            _ => 0,
        }
    }

    /// Executes a command whose data is there; gives the data to send and the completion.
    fn execute(
        &mut self,
        sqe: &SubmissionEntry,
        data: &[u8],
        io: bool,
    ) -> (Vec<u8>, CompletionEntry) {
        let cid = sqe.cid.get();
        let ok = CompletionEntry::success(cid);
        let none = Vec::new();
        if sqe.is_fabrics() {
            return match sqe.fctype() {
                fctype::CONNECT => {
                    self.connects += 1;
                    if Connect::from(sqe).qid == 0 {
                        self.cc = Cc::default();
                    }
                    (none, ok.with_dw0(ConnectSuccess::new(CNTLID).to_dw0()))
                }
                fctype::PROPERTY_GET => {
                    let value = self.property(PropertyGet::from(sqe).ofst);
                    (none, ok.with_result(value))
                }
                fctype::PROPERTY_SET => {
                    let set = PropertySet::from(sqe);
                    if set.ofst == property::CC {
                        self.cc = Cc(set.value as u32);
                        self.shut_down |= self.cc.shn() == Shn::Normal;
                    }
                    (none, ok)
                }
                fctype::DISCONNECT => (none, ok),
                _ => (none, CompletionEntry::new(cid, Status::INVALID_OPCODE)),
            };
        }
        if io {
            self.executed.push(*sqe);
            return self.execute_io(sqe, data);
        }
        match sqe.opc {
            admin::IDENTIFY => (self.identify(sqe), ok),
            admin::SET_FEATURES => {
                let granted = u32::from(self.manner.queues - 1);
                (none, ok.with_dw0(granted | granted << 16))
            }
            admin::KEEP_ALIVE => {
                self.keep_alives += 1;
                (none, ok)
            }
            admin::GET_LOG_PAGE => {
                let page = admin::GetLogPage::from(sqe);
                match &mut self.log {
                    Some(log) => match log(page) {
                        beyond if beyond.is_empty() => {
                            (none, ok.with_status(Status::INVALID_FIELD))
                        }
                        page => (page, ok),
                    },
                    None => (vec![0; page.bytes() as usize], ok),
                }
            }
            _ => (none, CompletionEntry::new(cid, Status::INVALID_OPCODE)),
        }
    }

    fn identify(&self, sqe: &SubmissionEntry) -> Vec<u8> {
        match admin::Identify::from(sqe).cns {
            cns::CONTROLLER => self.identify_controller().as_bytes().to_vec(),
            cns::NAMESPACE => {
                let mut identify = IdentifyNamespace::new_zeroed();
                identify.nsze = (BLOCKS as u64).into();
                identify.lbaf[0].lbads = 9;
                identify.as_bytes().to_vec()
            }
            cns::ACTIVE_NAMESPACES => {
                let mut list = NamespaceList::new_zeroed();
                list.fill(sqe.nsid.get(), [1, 2, 9]);
                list.as_bytes().to_vec()
            }
            _ => vec![0; 4096],
        }
    }

    fn execute_io(&mut self, sqe: &SubmissionEntry, data: &[u8]) -> (Vec<u8>, CompletionEntry) {
        let cid = sqe.cid.get();
        if matches!(sqe.opc, nvm::FLUSH | nvm::DATASET_MANAGEMENT) {
            return (Vec::new(), CompletionEntry::success(cid));
        }
        let rw = nvm::ReadWrite::from(sqe);
        let at = rw.slba as usize * BLOCK;
        let end = at + rw.blocks as usize * BLOCK;
        if end > self.disk.len() {
            let status = Status::LBA_OUT_OF_RANGE;
            return (Vec::new(), CompletionEntry::new(cid, status));
        }
        let ok = CompletionEntry::success(cid);
        match sqe.opc {
            nvm::READ => (self.disk[at..end].to_vec(), ok),
            nvm::WRITE => {
                self.disk[at..end].copy_from_slice(data);
                (Vec::new(), ok)
            }
            nvm::COMPARE if self.disk[at..end] != *data => {
                (Vec::new(), ok.with_status(Status::COMPARE_FAILURE))
            }
            nvm::WRITE_ZEROES => {
                self.disk[at..end].fill(0);
                (Vec::new(), ok)
            }
            _ => (Vec::new(), ok),
        }
    }
}

impl Peer {
    fn receive(&mut self) {
        let mut bytes = [0; 65_536];
        loop {
            match self.stream.receive(&mut [IoSliceMut::new(&mut bytes)]) {
                Ok(0) => self.gone = true,
                Ok(count) => {
                    self.received.extend_from_slice(&bytes[..count]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.gone = true,
            }
            return;
        }
    }

    fn send(&mut self) {
        while !self.to_send.is_empty() {
            match self
                .stream
                .send(&[IoSlice::new(self.to_send.make_contiguous())])
            {
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(_) => return,
            }
        }
    }

    fn next_pdu(&mut self) -> Option<Vec<u8>> {
        let common = CommonHeader::read_from_prefix(&self.received).ok()?.0;
        let plen = common.plen.get() as usize;
        assert!(plen >= 8, "the host sent a PDU of {plen} bytes");
        (self.received.len() >= plen).then(|| self.received.drain(..plen).collect())
    }

    /// Bytes that are sent as they are, at once.
    pub fn say(&mut self, bytes: &[u8]) {
        self.to_send.extend(bytes);
        self.send();
    }

    fn take(&mut self, pdu: &[u8], target: &mut FakeTarget) {
        let common = CommonHeader::read_from_prefix(pdu).unwrap().0;
        let hlen = usize::from(common.hlen);
        if common.has_header_digest() {
            assert!(self.digests.header, "an unasked header digest");
            assert_eq!(digest_of(&pdu[..hlen]), pdu[hlen..hlen + 4], "HDGST");
        }
        let data = match common.pdo {
            0 => &[][..],
            pdo => {
                let end = pdu.len() - if common.has_data_digest() { 4 } else { 0 };
                let data = &pdu[usize::from(pdo)..end];
                let alignment = (usize::from(target.manner.cpda) + 1) * 4;
                assert!(usize::from(pdo).is_multiple_of(alignment), "CPDA");
                if common.has_data_digest() {
                    assert_eq!(digest_of(data), pdu[end..], "DDGST");
                }
                data
            }
        };
        match common.kind().expect("a known PDU type") {
            PduType::IcReq => {
                let request = IcReq::read_from_bytes(pdu).unwrap();
                let granted = target.manner.digests;
                self.maxr2t = request.maxr2t.get() as usize + 1;
                let digests = Digests {
                    header: request.dgst & DGST_HEADER != 0 && granted.header,
                    data: request.dgst & DGST_DATA != 0 && granted.data,
                };
                let header = if digests.header { DGST_HEADER } else { 0 };
                let dgst = header | if digests.data { DGST_DATA } else { 0 };
                let manner = &target.manner;
                let response = IcResp::new(manner.cpda, dgst, manner.maxh2cdata);
                self.to_send.extend(response.as_bytes());
                self.digests = digests;
            }
            PduType::CapsuleCmd => {
                let sqe = CapsuleCmd::read_from_bytes(&pdu[..hlen]).unwrap().ccsqe;
                self.take_command(sqe, data, target);
            }
            PduType::H2cData => {
                let header = H2cData::read_from_bytes(&pdu[..hlen]).unwrap();
                if target.manner.silent {
                    return;
                }
                assert_eq!(header.datal.get() as usize, data.len(), "DATAL");
                assert!(data.len() as u32 <= target.manner.maxh2cdata, "MAXH2CDATA");
                self.take_data(&header, data, target);
            }
            PduType::H2cTermReq => {
                let request = TermReq::read_from_bytes(&pdu[..hlen]).unwrap();
                self.terminated = Some((request.fes.get(), request.fei.get()));
            }
            kind => panic!("a {kind:?} from the host"),
        }
    }

    fn take_command(&mut self, sqe: SubmissionEntry, data: &[u8], target: &mut FakeTarget) {
        if sqe.is_fabrics() && sqe.fctype() == fctype::CONNECT {
            self.io_queue = Connect::from(&sqe).qid != 0;
            assert_eq!(data.len(), 1024, "Connect has its data in the capsule");
        }
        if self.io_queue && !sqe.is_fabrics() && target.manner.silent {
            return;
        }
        match sqe.sgl_parsed() {
            Sgl::OffsetBlock { len, .. } => {
                assert_eq!(len as usize, data.len(), "in-capsule data");
                self.answer(&sqe, data, target);
            }
            Sgl::TransportDataBlock { len } if sqe.data_direction() as u8 == 1 && len > 0 => {
                let awaiting = Awaiting {
                    sqe,
                    data: vec![0; len as usize],
                    got: 0,
                    asked: 0,
                    ttag: target.rng.next_u64() as u16,
                };
                self.awaiting.push(awaiting);
                let index = self.awaiting.len() - 1;
                self.ask(index, target);
            }
            _ => self.answer(&sqe, &[], target),
        }
    }

    /// Sends R2Ts for what was not asked for yet.
    fn ask(&mut self, index: usize, target: &FakeTarget) {
        let digests = self.digests;
        let one = &mut self.awaiting[index];
        let at_once = if target.manner.many_r2ts {
            self.maxr2t
        } else {
            1
        };
        // All R2Ts but the last have the same size, so what is open can be counted.
        let chunk = target.manner.chunk as usize;
        while one.asked < one.data.len() && (one.asked - one.got).div_ceil(chunk) < at_once {
            let count = chunk.min(one.data.len() - one.asked);
            let r2t = R2t::new(one.sqe.cid.get(), one.ttag, one.asked as u32, count as u32);
            one.asked += count;
            self.to_send.extend(pdu(r2t.as_bytes(), &[], digests));
        }
    }

    fn take_data(&mut self, header: &H2cData, data: &[u8], target: &mut FakeTarget) {
        let index = self
            .awaiting
            .iter()
            .position(|one| one.sqe.cid == header.cccid)
            .expect("H2CData for a command that waits for it");
        let one = &mut self.awaiting[index];
        assert_eq!(header.ttag.get(), one.ttag, "TTAG");
        assert_eq!(header.datao.get() as usize, one.got, "DATAO in order");
        let at = one.got;
        one.data[at..at + data.len()].copy_from_slice(data);
        one.got += data.len();
        assert!(one.got <= one.asked, "data that was not asked for");
        if one.got == one.data.len() {
            let one = self.awaiting.swap_remove(index);
            self.answer(&one.sqe, &one.data, target);
        } else {
            self.ask(index, target);
        }
    }

    fn answer(&mut self, sqe: &SubmissionEntry, data: &[u8], target: &mut FakeTarget) {
        let io = self.io_queue && !sqe.is_fabrics();
        if io
            && target
                .manner
                .drop_after
                .is_some_and(|after| self.io_answered >= after)
        {
            self.stream.finish();
            self.gone = true;
            return;
        }
        self.io_answered += u64::from(io);
        let (out, cqe) = target.execute(sqe, data, io);
        let mut pdus = VecDeque::new();
        let success = target.manner.success_flag && cqe.result() == 0 && !out.is_empty();
        let chunk = target.manner.chunk.max(4) as usize & !3;
        let chunks = out.len().div_ceil(chunk);
        for (index, part) in out.chunks(chunk).enumerate() {
            let last = index + 1 == chunks;
            let flags = match (last, success) {
                (true, true) => FLAG_C2H_LAST_PDU | FLAG_C2H_SUCCESS,
                (true, false) => FLAG_C2H_LAST_PDU,
                (false, _) => 0,
            };
            let offset = (index * chunk) as u32;
            let header = C2hData::new(sqe.cid.get(), offset, part.len() as u32, flags);
            pdus.push_back(pdu(header.as_bytes(), part, self.digests));
        }
        if !success {
            pdus.push_back(pdu(CapsuleResp::new(cqe).as_bytes(), &[], self.digests));
        }
        self.answers.push(pdus);
    }

    fn queue_answers(&mut self, target: &mut FakeTarget) {
        while !self.answers.is_empty() {
            let index = if target.manner.shuffle {
                target.rng.below(self.answers.len() as u64) as usize
            } else {
                0
            };
            if let Some(pdu) = self.answers[index].pop_front() {
                self.to_send.extend(pdu);
            }
            if self.answers[index].is_empty() {
                self.answers.remove(index);
            }
        }
    }
}

/// The digest of `bytes`, as it travels.
fn digest_of(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).to_le_bytes()
}

/// A PDU with digests: `header` as made without them.
pub fn pdu(header: &[u8], data: &[u8], digests: Digests) -> Vec<u8> {
    let common = CommonHeader::read_from_prefix(header).unwrap().0;
    let common = common.with_digests(digests.header, digests.data, 0);
    let mut bytes = common.as_bytes().to_vec();
    bytes.extend(&header[bytes.len()..]);
    if digests.header {
        let digest = digest_of(&bytes);
        bytes.extend(digest);
    }
    bytes.extend(data);
    if digests.data && !data.is_empty() {
        bytes.extend(digest_of(data));
    }
    bytes
}

/// The controller's termination request.
pub fn termination(fes: FatalErrorStatus, fei: u32) -> Vec<u8> {
    TermReq::from_controller(fes, fei, 0).as_bytes().to_vec()
}
