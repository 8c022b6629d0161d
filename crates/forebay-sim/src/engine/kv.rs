//! The simulated KV memory: blocks, who holds them, and a prefix cache that keeps what nobody holds until the room is
//! needed (least recently used first). Pure. Never lets the blocks in use exceed the capacity.

use std::collections::{BTreeMap, HashMap};

use crate::text;

/// The blocks of one simulated GPU (or of the GPUs of one instance together).
#[derive(Clone, Debug)]
pub struct KvPool {
    capacity: u32,
    in_use: u32,
    caching: bool,
    /// By key: the hash of its tokens, or for a second block with the same tokens a number of its own.
    cached: HashMap<u64, Cached>,
    /// Keys of the further blocks with the same tokens, by hash, in the order in which they were computed.
    twins: HashMap<u64, Vec<u64>>,
    /// Keys of the cached blocks that nobody holds, in the order in which they will be evicted.
    idle: BTreeMap<u64, u64>,
    ticks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Cached {
    hash: u64,
    holders: u32,
    tick: u64,
}

/// The blocks that one sequence holds. Goes back by [`KvPool::release`] and no other way.
#[derive(Clone, Debug, Default)]
#[must_use = "blocks that are not released are lost"]
pub struct Hold {
    private: u32,
    shared: Vec<u64>,
}

impl Hold {
    /// Blocks held.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.private + self.shared.len() as u32
    }
}

impl KvPool {
    /// An empty memory of so many blocks.
    #[must_use]
    pub fn new(capacity: u32, caching: bool) -> KvPool {
        KvPool {
            capacity,
            in_use: 0,
            caching,
            cached: HashMap::new(),
            twins: HashMap::new(),
            idle: BTreeMap::new(),
            ticks: 0,
        }
    }

    /// The first block with these tokens.
    fn find(&self, hash: u64) -> Option<u64> {
        if self.cached.contains_key(&hash) {
            return Some(hash);
        }
        if self.twins.is_empty() { None } else { self.twins.get(&hash)?.first().copied() }
    }

    fn is_idle(&self, hash: u64) -> bool {
        self.find(hash).and_then(|key| self.cached.get(&key)).is_some_and(|entry| entry.holders == 0)
    }

    /// Blocks in all.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks held by sequences; cached blocks that nobody holds are free.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Returns how many of the first `limit` blocks of a sequence are in the cache.
    #[must_use]
    pub fn matched(&self, hashes: &[u64], limit: u32) -> u32 {
        if !self.caching {
            return 0;
        }
        hashes.iter().take(limit as usize).take_while(|hash| self.find(**hash).is_some()).count() as u32
    }

    /// Returns whether there is room for a new sequence of `blocks` that begins with these cached ones.
    #[must_use]
    pub fn fits(&self, hits: &[u64], blocks: u32) -> bool {
        // A cached block that nobody holds counts as free memory until somebody holds it again.
        let woken = hits.iter().filter(|hash| self.is_idle(**hash)).count();
        let fresh = blocks.saturating_sub(hits.len() as u32);
        self.in_use + woken as u32 + fresh <= self.capacity
    }

    /// Gives a new sequence its cached blocks and as many fresh ones as make `blocks`, or nothing if there is no room.
    pub fn admit(&mut self, hits: &[u64], blocks: u32) -> Option<Hold> {
        if !self.fits(hits, blocks) {
            return None;
        }
        let mut hold = Hold { private: 0, shared: Vec::with_capacity(hits.len()) };
        for hash in hits {
            let Some(key) = self.find(*hash) else { break };
            let Some(entry) = self.cached.get_mut(&key) else { break };
            if entry.holders == 0 {
                self.idle.remove(&entry.tick);
                self.in_use += 1;
            }
            entry.holders += 1;
            hold.shared.push(key);
        }
        let grown = self.grow(&mut hold, blocks);
        debug_assert!(grown, "the room was counted above");
        Some(hold)
    }

    /// Grows a hold to `blocks`; false, and nothing changed, if there is no room.
    pub fn grow(&mut self, hold: &mut Hold, blocks: u32) -> bool {
        let fresh = blocks.saturating_sub(hold.blocks());
        if self.in_use + fresh > self.capacity {
            return false;
        }
        self.in_use += fresh;
        hold.private += fresh;
        // The cache is what memory is left over: it gives way block by block, the longest unused first, and only when
        // it must.
        while self.in_use + self.idle.len() as u32 > self.capacity {
            let Some((_, key)) = self.idle.pop_first() else { break };
            self.evict(key);
        }
        true
    }

    fn evict(&mut self, key: u64) {
        let Some(Cached { hash, .. }) = self.cached.remove(&key) else { return };
        if key == hash {
            return;
        }
        if let Some(keys) = self.twins.get_mut(&hash) {
            keys.retain(|twin| *twin != key);
            if keys.is_empty() {
                self.twins.remove(&hash);
            }
        }
    }

    /// Makes one computed block of a hold findable by its hash. A block that another sequence computed as well is kept
    /// beside the other's, as in vLLM: it is found when the first is gone.
    pub fn publish(&mut self, hold: &mut Hold, hash: u64) {
        if !self.caching || hold.private == 0 {
            return;
        }
        let key = match self.find(hash) {
            None => hash,
            Some(_) => {
                self.ticks += 1;
                let key = text::mix(hash, self.ticks);
                self.twins.entry(hash).or_default().push(key);
                key
            }
        };
        self.cached.insert(key, Cached { hash, holders: 1, tick: 0 });
        hold.private -= 1;
        hold.shared.push(key);
    }

    /// Takes all blocks back. The end of a sequence becomes the first to be evicted, its beginning the last.
    pub fn release(&mut self, hold: Hold) {
        self.in_use -= hold.private;
        for key in hold.shared.into_iter().rev() {
            let Some(entry) = self.cached.get_mut(&key) else { continue };
            entry.holders -= 1;
            if entry.holders == 0 {
                self.ticks += 1;
                entry.tick = self.ticks;
                self.idle.insert(self.ticks, key);
                self.in_use -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_blocks_are_found_again_until_the_room_is_needed() {
        let mut pool = KvPool::new(4, true);
        let mut hold = pool.admit(&[], 3).unwrap();
        for hash in [1, 2, 3] {
            pool.publish(&mut hold, hash);
        }
        pool.release(hold);
        assert_eq!((pool.in_use(), pool.matched(&[1, 2, 3, 4], 9)), (0, 3));
        let other = pool.admit(&[], 3).unwrap();
        assert_eq!(pool.matched(&[1, 2, 3], 9), 1, "the end of the sequence goes first");
        assert!(pool.admit(&[1], 3).is_none());
        assert_eq!(pool.in_use(), 3, "a refusal takes nothing");
        let again = pool.admit(&[1], 1).unwrap();
        assert_eq!(pool.in_use(), 4);
        pool.release(other);
        pool.release(again);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn two_holders_of_a_block_use_it_once() {
        let mut pool = KvPool::new(4, true);
        let mut first = pool.admit(&[], 1).unwrap();
        pool.publish(&mut first, 7);
        let second = pool.admit(&[7], 2).unwrap();
        assert_eq!(pool.in_use(), 2);
        pool.release(first);
        assert_eq!(pool.in_use(), 2);
        pool.release(second);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn a_block_computed_twice_is_found_until_both_are_gone() {
        let mut pool = KvPool::new(3, true);
        let (mut first, mut second) = (pool.admit(&[], 1).unwrap(), pool.admit(&[], 1).unwrap());
        pool.publish(&mut first, 7);
        pool.publish(&mut second, 7);
        pool.release(first);
        let other = pool.admit(&[], 2).unwrap();
        assert_eq!((pool.in_use(), pool.matched(&[7], 1)), (3, 1), "the first was evicted, the second is held");
        pool.release(second);
        assert_eq!(pool.matched(&[7], 1), 1);
        let third = pool.admit(&[], 1).unwrap();
        assert_eq!(pool.matched(&[7], 1), 0);
        pool.release(other);
        pool.release(third);
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn nothing_is_found_with_the_cache_off() {
        let mut pool = KvPool::new(4, false);
        let mut hold = pool.admit(&[], 1).unwrap();
        pool.publish(&mut hold, 7);
        assert_eq!(pool.matched(&[7], 1), 0);
        pool.release(hold);
        assert_eq!(pool.in_use(), 0);
    }
}
