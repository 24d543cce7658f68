//! What was computed for prompts seen before: a repeated prompt runs no text encoder, and with the steps it had no modulation either.

use super::load::Prompt;

/// Prompts that are remembered unless a caller says otherwise.
pub(super) const DEFAULT_PROMPTS: usize = 16;

/// One prompt's, as the device gave it. CLIP's vector depends on its tokens alone, T5's on its own, padding included.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    /// f32 `[width]`.
    pub pooled: Box<[u8]>,
    /// bf16 `[tokens, width]`.
    pub context: Box<[u8]>,
}

/// What modulation vectors are computed of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Modulated {
    /// CLIP's tokens of every prompt.
    pub prompts: Vec<Vec<u32>>,
    /// Sinusoids of the steps' times and of the guidance scale.
    pub times: Box<[u8]>,
}

/// Of how many prompts with their steps modulation vectors are remembered at most: they are larger than encodings (4 MB a step), and
/// what comes again soon is the same prompt with another seed.
const MODULATIONS: usize = 2;

/// What was computed for prompts seen before, of one model.
#[derive(Debug)]
pub(super) struct PromptCache {
    encodings: Lru<(Vec<u32>, Vec<u32>), Encoding>,
    /// f32 `[prompts, steps, modulation width]`.
    modulations: Lru<Modulated, Box<[u8]>>,
}

impl PromptCache {
    /// Of at most `capacity` prompts.
    pub fn new(capacity: usize) -> PromptCache {
        PromptCache { encodings: Lru::new(capacity), modulations: Lru::new(capacity.min(MODULATIONS)) }
    }

    /// Remembers as many prompts as these at least, with modulation vectors, for now; returns what [`PromptCache::shrink`] is told when that
    /// is over.
    pub fn grow(&mut self, prompts: usize) -> [usize; 2] {
        let before = [self.encodings.capacity, self.modulations.capacity];
        self.encodings.capacity = before[0].max(prompts);
        self.modulations.capacity = before[1].max(1);
        before
    }

    /// Remembers no more than before.
    pub fn shrink(&mut self, [encodings, modulations]: [usize; 2]) {
        self.encodings.shrink(encodings);
        self.modulations.shrink(modulations);
    }

    /// Forgets all: what was computed would come out otherwise now.
    pub fn clear(&mut self) {
        self.encodings.entries.clear();
        self.modulations.entries.clear();
    }

    /// The encodings of all `prompts`, or nothing.
    pub fn get(&mut self, prompts: &[Prompt]) -> Option<Vec<Encoding>> {
        let of = |prompt: &Prompt| self.encodings.get(&key(prompt)).cloned();
        prompts.iter().map(of).collect()
    }

    /// Remembers one.
    pub fn put(&mut self, prompt: &Prompt, encoding: impl FnOnce() -> Encoding) {
        self.encodings.put(key(prompt), encoding);
    }

    /// What modulation gave for this.
    pub fn modulations(&mut self, of: &Modulated) -> Option<&[u8]> {
        self.modulations.get(of).map(|bytes| &**bytes)
    }

    /// Remembers that.
    pub fn put_modulations(&mut self, of: Modulated, modulations: impl FnOnce() -> Box<[u8]>) {
        self.modulations.put(of, modulations);
    }
}

fn key(prompt: &Prompt) -> (Vec<u32>, Vec<u32>) {
    (prompt.clip.ids.clone(), prompt.t5.ids.clone())
}

/// As many entries as were used last, the last used last.
#[derive(Debug)]
struct Lru<K, V> {
    capacity: usize,
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V> Lru<K, V> {
    fn new(capacity: usize) -> Lru<K, V> {
        Lru { capacity, entries: Vec::new() }
    }

    /// Forgets what is more than `capacity`.
    fn shrink(&mut self, capacity: usize) {
        self.capacity = capacity;
        let more = self.entries.len().saturating_sub(capacity);
        self.entries.drain(..more);
    }

    /// Uses it.
    fn get(&mut self, key: &K) -> Option<&V> {
        let at = self.entries.iter().position(|(known, _)| known == key)?;
        let entry = self.entries.remove(at);
        self.entries.push(entry);
        self.entries.last().map(|(_, value)| value)
    }

    /// Forgets what was not used for longest.
    fn put(&mut self, key: K, value: impl FnOnce() -> V) {
        if self.capacity == 0 {
            return;
        }
        self.entries.retain(|(known, _)| *known != key);
        if self.entries.len() >= self.capacity {
            self.entries.remove(0);
        }
        self.entries.push((key, value()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::Tokens;

    fn prompt(id: u32) -> Prompt {
        let tokens = |ids| Tokens { ids, len: 1, eos_index: 0, dropped: 0 };
        Prompt { clip: tokens(vec![id, 1]), t5: tokens(vec![id]) }
    }

    fn encoding(value: u8) -> Encoding {
        Encoding { pooled: vec![value].into(), context: vec![value; 2].into() }
    }

    #[test]
    fn the_least_recently_used_prompt_goes() {
        let mut cache = PromptCache::new(2);
        let has = |cache: &mut PromptCache, ids: &[u32]| {
            let prompts: Vec<Prompt> = ids.iter().map(|&id| prompt(id)).collect();
            cache.get(&prompts).map(|found| found.iter().map(|e| e.pooled[0]).collect::<Vec<_>>())
        };
        cache.put(&prompt(1), || encoding(1));
        cache.put(&prompt(2), || encoding(2));
        assert_eq!(has(&mut cache, &[1]), Some(vec![1]));
        cache.put(&prompt(3), || encoding(3));
        assert_eq!(has(&mut cache, &[2]), None);
        assert_eq!(has(&mut cache, &[3, 1]), Some(vec![3, 1]));
        assert_eq!(has(&mut cache, &[1, 2]), None, "both, or nothing");
        cache.put(&prompt(1), || encoding(9));
        assert_eq!((has(&mut cache, &[1]), cache.encodings.entries.len()), (Some(vec![9]), 2));
        let capacity = cache.grow(1);
        cache.put(&prompt(4), || encoding(4));
        assert_eq!(cache.encodings.entries.len(), 2, "no more than were asked for");
        cache.shrink(capacity);
        let mut off = PromptCache::new(0);
        let capacity = off.grow(2);
        off.put(&prompt(1), || encoding(1));
        off.put(&prompt(2), || encoding(2));
        assert_eq!(has(&mut off, &[1, 2]), Some(vec![1, 2]));
        off.shrink(capacity);
        assert_eq!((has(&mut off, &[1]), has(&mut off, &[2])), (None, None));
        off.put(&prompt(1), || panic!("nobody asks"));
        assert_eq!(has(&mut off, &[1]), None);
    }
}
