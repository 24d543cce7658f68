//! What the text encoders gave for prompts that were seen before: a repeated prompt runs neither of them.

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

/// The most recently used encodings of one model, the last used last.
#[derive(Debug)]
pub(super) struct PromptCache {
    capacity: usize,
    entries: Vec<(Key, Encoding)>,
}

type Key = (Vec<u32>, Vec<u32>);

fn key(prompt: &Prompt) -> Key {
    (prompt.clip.ids.clone(), prompt.t5.ids.clone())
}

impl PromptCache {
    /// Of at most `capacity` prompts.
    pub fn new(capacity: usize) -> PromptCache {
        PromptCache { capacity, entries: Vec::new() }
    }

    /// Those of all `prompts`, or nothing.
    pub fn get(&mut self, prompts: &[Prompt]) -> Option<Vec<Encoding>> {
        prompts
            .iter()
            .map(|prompt| {
                let key = key(prompt);
                let at = self.entries.iter().position(|(known, _)| *known == key)?;
                let entry = self.entries.remove(at);
                let encoding = entry.1.clone();
                self.entries.push(entry);
                Some(encoding)
            })
            .collect()
    }

    /// Remembers one, and forgets what was not used for longest.
    pub fn put(&mut self, prompt: &Prompt, encoding: impl FnOnce() -> Encoding) {
        if self.capacity == 0 {
            return;
        }
        let key = key(prompt);
        self.entries.retain(|(known, _)| *known != key);
        if self.entries.len() >= self.capacity {
            self.entries.remove(0);
        }
        self.entries.push((key, encoding()));
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
        assert_eq!((has(&mut cache, &[1]), cache.entries.len()), (Some(vec![9]), 2));
        let mut off = PromptCache::new(0);
        off.put(&prompt(1), || panic!("nobody asks"));
        assert_eq!(has(&mut off, &[1]), None);
    }
}
