//! A table of pages of one kind: where each lies, which are in memory, and which have changed.
//!
//! Invariants:
//! - A page that has changed is in memory until a checkpoint has written it.
//! - The place of a page that was written elsewhere or removed goes to [`Table::left`]: the last
//!   checkpoint still refers to it.
//! - A checkpoint takes all pages as they were when it was begun, a few at a time: a page that is to be changed
//!   or removed before its turn has come is taken first. The same holds for the pieces that name them: the
//!   pointers of one are copied before its turn where one of them is to be changed.

use crate::format::{
    crc32c,
    page::{Body, POINTERS_PER_PIECE, PageBytes, Piece},
    root::Pointer,
};

/// One page.
#[derive(Debug)]
struct Slot<B> {
    location: u64,
    crc: u32,
    number: u32,
    /// A checkpoint is to take it.
    queued: bool,
    dirty: bool,
    body: Option<B>,
}

impl<B> Default for Slot<B> {
    fn default() -> Self {
        Self {
            location: 0,
            crc: 0,
            number: 0,
            queued: false,
            dirty: false,
            body: None,
        }
    }
}

/// What a checkpoint takes of a table: each page and piece, and where it goes.
pub(crate) type Taken = Vec<(u64, PageBytes)>;

/// A table that a checkpoint is taking.
#[derive(Debug)]
struct Taking {
    taken: Taken,
    /// The pages, and which is next.
    queue: Vec<u32>,
    next: usize,
    /// The pieces; those of which something was changed since as they are to be, with the checksums of what
    /// was taken so far.
    pieces: Vec<(usize, Option<Piece>)>,
    next_piece: usize,
}

impl Taking {
    /// A page's bytes are there.
    fn put(&mut self, place: u64, id: u32, page: PageBytes) -> u32 {
        let crc = crc32c(&page);
        self.taken.push((place, page));
        let number = id as usize / POINTERS_PER_PIECE;
        let piece = self.pieces.binary_search_by_key(&number, |piece| piece.0);
        let piece = &mut self.pieces[piece.expect("a page's piece changes with it")].1;
        if let Some(Piece(pointers)) = piece {
            pointers[id as usize % POINTERS_PER_PIECE].crc = crc.into();
        }
        crc
    }
}

/// A piece of the table.
#[derive(Clone, Copy, Debug, Default)]
struct PieceSlot {
    /// Where it lies.
    pointer: Pointer,
    /// One more than its place among those of the checkpoint that takes it; 0 once its pointers are taken.
    queued: u32,
    dirty: bool,
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table<B> {
    slots: Vec<Slot<B>>,
    /// Pages that have changed since the last checkpoint; some may have been removed since.
    dirty: Vec<u32>,
    /// Pages that are in memory, and where the search for one that need not be goes on.
    held: usize,
    hand: usize,
    pieces: Vec<PieceSlot>,
    /// How many of them.
    dirty_pieces: usize,
    /// Places that the last checkpoint uses and the next will not.
    pub left: Vec<u64>,
    taking: Option<Box<Taking>>,
    /// What has become of the numbers since somebody began to count them anew.
    watched: Option<Watched>,
}

/// See [`Table::watch`].
#[derive(Debug, Default)]
struct Watched {
    /// How much a page's number has grown; where it fell, the complement.
    gained: Vec<u32>,
    /// It was put since.
    came: Vec<bool>,
}

impl Watched {
    fn note(&mut self, id: u32, old: u32, new: u32) {
        let at = id as usize;
        if self.gained.len() <= at {
            self.gained.resize(at + 1, 0);
        }
        self.gained[at] = self.gained[at].wrapping_add(new).wrapping_sub(old);
    }
}

impl<B: Body> Table<B> {
    pub fn new() -> Self {
        Self {
            slots: Vec::new(),
            dirty: Vec::new(),
            pieces: Vec::new(),
            dirty_pieces: 0,
            held: 0,
            hand: 0,
            left: Vec::new(),
            taking: None,
            watched: None,
        }
    }

    /// The table that a checkpoint holds: its pieces, and what they say.
    pub fn load(pieces: Vec<Pointer>, pointers: impl Iterator<Item = Pointer>) -> Self {
        let slots = pointers.map(|pointer| Slot {
            location: pointer.location.get(),
            crc: pointer.crc.get(),
            number: pointer.number.get(),
            queued: false,
            dirty: false,
            body: None,
        });
        Self {
            slots: slots.collect(),
            dirty: Vec::new(),
            pieces: pieces.into_iter().map(PieceSlot::written).collect(),
            dirty_pieces: 0,
            held: 0,
            hand: 0,
            left: Vec::new(),
            taking: None,
            watched: None,
        }
    }

    pub fn len(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("fewer than 2^32 pages")
    }

    /// Makes room up to `len` entries.
    pub fn grow(&mut self, len: u32) {
        let len = len as usize;
        if self.slots.len() < len {
            self.slots.resize_with(len, Slot::default);
        }
        let pieces = len.div_ceil(POINTERS_PER_PIECE);
        if self.pieces.len() < pieces {
            self.dirty_pieces += pieces - self.pieces.len();
            let new = PieceSlot {
                dirty: true,
                ..PieceSlot::default()
            };
            self.pieces.resize(pieces, new);
        }
    }

    pub fn body(&self, id: u32) -> Option<&B> {
        self.slots.get(id as usize)?.body.as_ref()
    }

    /// The page, to change what is not kept on the disk.
    pub fn body_unkept(&mut self, id: u32) -> Option<&mut B> {
        self.slots.get_mut(id as usize)?.body.as_mut()
    }

    /// The page, to change it.
    pub fn change(&mut self, id: u32) -> Option<&mut B> {
        self.slots.get(id as usize)?.body.as_ref()?;
        self.touch(id);
        self.slots[id as usize].body.as_mut()
    }

    /// The page has been changed.
    pub fn touch(&mut self, id: u32) {
        // Where it has changed before, so has its piece.
        if !self.slots[id as usize].dirty {
            self.mark(id);
        }
    }

    fn mark(&mut self, id: u32) {
        self.take(id);
        let slot = &mut self.slots[id as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(id);
        }
        self.mark_piece(id);
    }

    fn mark_piece(&mut self, id: u32) {
        let dirty = &mut self.pieces[id as usize / POINTERS_PER_PIECE].dirty;
        self.dirty_pieces += usize::from(!std::mem::replace(dirty, true));
    }

    pub fn number(&self, id: u32) -> u32 {
        self.slots.get(id as usize).map_or(0, |slot| slot.number)
    }

    pub fn set_number(&mut self, id: u32, number: u32) {
        self.take_pointers(id);
        let old = std::mem::replace(&mut self.slots[id as usize].number, number);
        if let Some(watched) = &mut self.watched {
            watched.note(id, old, number);
        }
        self.mark_piece(id);
    }

    /// From here on it is known by how much each page's number has changed, and which pages were put.
    pub fn watch(&mut self) {
        self.watched = Some(Watched::default());
    }

    pub fn watch_no_more(&mut self) {
        self.watched = None;
    }

    /// How much the page's number has grown since it is watched; where it fell, the complement.
    pub fn gained(&self, id: u32) -> u32 {
        let watched = self.watched.as_ref();
        let gained = watched.and_then(|watched| watched.gained.get(id as usize));
        gained.copied().unwrap_or(0)
    }

    /// True where the page was put since the table is watched.
    pub fn came(&self, id: u32) -> bool {
        let watched = self.watched.as_ref();
        watched.is_some_and(|watched| watched.came.get(id as usize) == Some(&true))
    }

    /// Puts a new page where there is none.
    pub fn put(&mut self, id: u32, body: B, number: u32) {
        self.grow(id + 1);
        debug_assert!(self.slots[id as usize].body.is_none());
        self.slots[id as usize].body = Some(body);
        self.held += 1;
        self.set_number(id, number);
        if let Some(watched) = &mut self.watched {
            let at = id as usize;
            watched.came.resize(watched.came.len().max(at + 1), false);
            watched.came[at] = true;
        }
        self.mark(id);
    }

    /// Puts the page that was read from its place.
    pub fn install(&mut self, id: u32, body: B) {
        let slot = &mut self.slots[id as usize];
        if slot.body.is_none() {
            slot.body = Some(body);
            self.held += 1;
        }
    }

    pub fn remove(&mut self, id: u32) {
        self.take(id);
        self.take_pointers(id);
        let slot = std::mem::take(&mut self.slots[id as usize]);
        self.held -= usize::from(slot.body.is_some());
        if slot.location != 0 {
            self.left.push(slot.location);
        }
        self.slots[id as usize].dirty = slot.dirty;
        if let Some(watched) = &mut self.watched {
            watched.note(id, slot.number, 0);
        }
        self.mark_piece(id);
    }

    /// Pages that are in memory.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Drops pages from memory that can be read again, until no more than `most` are left or all have
    /// been looked at; how many. What was sealed has been written.
    pub fn evict(&mut self, most: usize, may_go: impl Fn(&B) -> bool) -> usize {
        let before = self.held;
        for _ in 0..self.slots.len() {
            if self.held <= most {
                break;
            }
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            let is_there = slot.location != 0 && !slot.queued;
            if !slot.dirty && is_there && slot.body.as_ref().is_some_and(&may_go) {
                slot.body = None;
                self.held -= 1;
            }
        }
        before - self.held
    }

    /// Where the page lies and its checksum, if it was ever written.
    pub fn place(&self, id: u32) -> Option<(u64, u32)> {
        let slot = self.slots.get(id as usize)?;
        (slot.location != 0).then_some((slot.location, slot.crc))
    }

    /// True where the number names a page.
    pub fn exists(&self, id: u32) -> bool {
        self.slots
            .get(id as usize)
            .is_some_and(|slot| slot.location != 0 || slot.body.is_some())
    }

    /// Every number that names a page.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).filter(|id| self.exists(*id))
    }

    /// How many places the next checkpoint needs for this table, at most.
    pub fn places_needed(&self) -> usize {
        self.dirty.len() + self.dirty_pieces
    }

    pub fn pieces_len(&self) -> usize {
        self.pieces.len()
    }

    pub fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }

    /// Begins to take what has changed: each page and each piece gets a place.
    pub fn begin_taking(&mut self, mut place: impl FnMut() -> u64) {
        assert!(self.taking.is_none(), "one checkpoint after the other");
        let mut queue = std::mem::take(&mut self.dirty);
        queue.retain(|id| {
            let slot = &mut self.slots[*id as usize];
            slot.dirty = false;
            slot.body.is_some()
        });
        for id in &queue {
            let slot = &mut self.slots[*id as usize];
            if slot.location != 0 {
                self.left.push(slot.location);
            }
            slot.location = place();
            slot.queued = true;
        }
        self.dirty_pieces = 0;
        let mut pieces = Vec::new();
        for (number, piece) in self.pieces.iter_mut().enumerate() {
            if !std::mem::take(&mut piece.dirty) {
                continue;
            }
            let old = piece.pointer.location.get();
            if old != 0 {
                self.left.push(old);
            }
            piece.pointer.location = place().into();
            pieces.push((number, None));
            piece.queued = u32::try_from(pieces.len()).expect("fewer than 2^32 pieces");
        }
        self.taking = Some(Box::new(Taking {
            // Touched as it is filled.
            taken: Vec::with_capacity(queue.len() + pieces.len()),
            queue,
            next: 0,
            pieces,
            next_piece: 0,
        }));
    }

    /// Takes a page, if it is in the queue: it is about to be changed.
    pub fn take(&mut self, id: u32) {
        let slot = &mut self.slots[id as usize];
        if !std::mem::take(&mut slot.queued) {
            return;
        }
        let body = slot.body.as_ref().expect("it stays until it is taken");
        let page = body.encode(u64::from(id));
        let taking = self.taking.as_mut().expect("there is a queue");
        slot.crc = taking.put(slot.location, id, page);
    }

    /// Takes what a page's piece says, if its turn is still to come: it is about to be changed.
    fn take_pointers(&mut self, id: u32) {
        let number = id as usize / POINTERS_PER_PIECE;
        if self.pieces[number].queued > 0 {
            let piece = self.piece(number);
            let at = std::mem::take(&mut self.pieces[number].queued) as usize - 1;
            let taking = self.taking.as_mut().expect("there is a queue");
            taking.pieces[at].1 = Some(piece);
        }
    }

    /// A piece as it is now.
    fn piece(&self, number: usize) -> Piece {
        let slots = &self.slots[number * POINTERS_PER_PIECE..];
        let mut pointers = Box::new([Pointer::default(); POINTERS_PER_PIECE]);
        let all = pointers.iter_mut().zip(slots);
        all.for_each(|(pointer, slot)| *pointer = slot.pointer());
        Piece(pointers)
    }

    /// Takes some more, at most so many; how many. None are left where it is fewer.
    pub fn take_some(&mut self, most: usize) -> usize {
        let mut done = 0;
        while done < most {
            let Some(taking) = &mut self.taking else {
                break;
            };
            if let Some(id) = taking.queue.get(taking.next).copied() {
                taking.next += 1;
                self.take(id);
            } else if let Some((number, piece)) = taking.pieces.get_mut(taking.next_piece) {
                let (number, known) = (*number, piece.take());
                taking.next_piece += 1;
                let piece = known.unwrap_or_else(|| self.piece(number));
                let page = piece.encode(number as u64);
                let slot = &mut self.pieces[number];
                slot.queued = 0;
                slot.pointer.crc = crc32c(&page).into();
                let taking = self.taking.as_mut().expect("as before");
                taking.taken.push((slot.pointer.location.get(), page));
            } else {
                break;
            }
            done += 1;
        }
        done
    }

    /// All that was taken.
    pub fn end_taking(&mut self) -> Taken {
        let taking = self.taking.take().expect("it was begun");
        let all = taking.next == taking.queue.len() && taking.next_piece == taking.pieces.len();
        assert!(all, "all of it was taken");
        taking.taken
    }

    pub fn pieces(&self) -> Vec<Pointer> {
        self.pieces.iter().map(|piece| piece.pointer).collect()
    }

    /// Where a page or a piece was written, and its checksum: the pieces first. The outer `None` is
    /// beyond the last one.
    pub fn written(&self, number: usize) -> Option<Option<(u64, u32)>> {
        let pointer = match number.checked_sub(self.pieces.len()) {
            None => self.pieces[number].pointer,
            Some(slot) => self.slots.get(slot)?.pointer(),
        };
        let (place, crc) = (pointer.location.get(), pointer.crc.get());
        Some((place != 0).then_some((place, crc)))
    }

    /// Every place that the table's newest checkpoint uses.
    pub fn places(&self) -> impl Iterator<Item = u64> + '_ {
        let pages = self.slots.iter().map(|slot| slot.location);
        let pieces = self.pieces.iter().map(|piece| piece.pointer.location.get());
        pages.chain(pieces).filter(|place| *place != 0)
    }
}

impl PieceSlot {
    fn written(pointer: Pointer) -> Self {
        Self {
            pointer,
            ..Self::default()
        }
    }
}

impl<B> Slot<B> {
    fn pointer(&self) -> Pointer {
        Pointer {
            location: self.location.into(),
            crc: self.crc.into(),
            number: self.number.into(),
        }
    }
}
