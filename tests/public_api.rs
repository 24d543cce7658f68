//! What dependents can name: `docs/api.txt` is read from the sources, so that no change of it goes unseen.
//!
//! `BLESS=1 cargo test --all-features --test public_api` writes it anew.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, Type, UseTree, Visibility};

const TABLE: &str = "docs/api.txt";
/// Names beside those of `schnell::image`: the fewer, the better they are known.
const MOST_NAMES: usize = 53;

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Hidden, or for the tests alone.
fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        let is_cfg = attribute.path().is_ident("cfg");
        text.contains("doc (hidden)")
            || is_cfg && !text.contains("not") && (text.contains("\"check\"") || text.contains("test"))
            || is_cfg && text.contains("not (feature = \"cuda\")")
            || is_cfg && text.contains("not (feature = \"demo\")")
    })
}

/// Every source file, parsed.
fn sources(folder: &Path, into: &mut Vec<(PathBuf, syn::File)>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.ends_with("src/bin") {
            continue;
        } else if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            into.push((path, syn::parse_file(&text).unwrap()));
        }
    }
}

/// `a::{b, c::d}` as `a::b`, `a::c::d`.
fn leaves(tree: &UseTree, before: &str, into: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => leaves(&path.tree, &format!("{before}{}::", path.ident), into),
        UseTree::Name(name) => into.push(format!("{before}{}", name.ident)),
        UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, before, into)),
        other => panic!("lib.rs names each item that it re-exports, not {}", other.to_token_stream()),
    }
}

fn name_of(item: &Item) -> Option<String> {
    let (visibility, name) = match item {
        Item::Struct(item) => (&item.vis, &item.ident),
        Item::Enum(item) => (&item.vis, &item.ident),
        Item::Type(item) => (&item.vis, &item.ident),
        Item::Const(item) => (&item.vis, &item.ident),
        Item::Fn(item) => (&item.vis, &item.sig.ident),
        Item::Trait(item) => (&item.vis, &item.ident),
        _ => return None,
    };
    is_public(visibility).then(|| name.to_string())
}

/// Only what a dependent sees: derives and `non_exhaustive` stay of the attributes.
fn visible(attributes: &mut Vec<Attribute>) {
    attributes.retain(|a| {
        a.path().is_ident("derive") || a.to_token_stream().to_string().contains("non_exhaustive")
    });
}

fn without_hidden_fields(fields: &mut Fields) {
    if let Fields::Named(named) = fields {
        let kept = std::mem::take(&mut named.named)
            .into_iter()
            .filter(|f| is_public(&f.vis) && !is_hidden(&f.attrs));
        named.named = kept.map(|mut f| (f.attrs.clear(), f).1).collect();
    }
}

fn printed(items: Vec<Item>) -> String {
    prettyplease::unparse(&syn::File { shebang: None, attrs: Vec::new(), items })
}

fn show(item: &Item) -> String {
    let mut item = item.clone();
    match &mut item {
        Item::Struct(item) => {
            visible(&mut item.attrs);
            without_hidden_fields(&mut item.fields);
        }
        Item::Enum(item) => {
            visible(&mut item.attrs);
            for variant in &mut item.variants {
                variant.attrs.clear();
                if let Fields::Named(named) = &mut variant.fields {
                    named.named.iter_mut().for_each(|field| field.attrs.clear());
                }
            }
        }
        Item::Fn(item) => {
            item.attrs.clear();
            item.block.stmts.clear();
        }
        Item::Type(item) => item.attrs.clear(),
        Item::Const(item) => item.attrs.clear(),
        other => panic!("{} is re-exported: say how it is shown", other.to_token_stream()),
    }
    printed(vec![item])
}

/// Methods without their bodies, or the trait that is implemented.
fn show_impl(item: &ItemImpl) -> Option<String> {
    if let Some((_, path, _)) = &item.trait_ {
        let (path, of) = (path.to_token_stream().to_string(), item.self_ty.to_token_stream().to_string());
        return Some(format!("impl {} for {}\n", path.replace(' ', ""), of.replace(' ', "")));
    }
    let mut item = item.clone();
    item.attrs.clear();
    item.items.retain_mut(|part| match part {
        ImplItem::Fn(method) if is_public(&method.vis) && !is_hidden(&method.attrs) => {
            visible(&mut method.attrs);
            method.block.stmts.clear();
            true
        }
        ImplItem::Const(constant) if is_public(&constant.vis) && !is_hidden(&constant.attrs) => {
            constant.attrs.clear();
            true
        }
        _ => false,
    });
    (!item.items.is_empty()).then(|| printed(vec![Item::Impl(item)]))
}

fn is_of(item: &ItemImpl, name: &str) -> bool {
    matches!(&*item.self_ty, Type::Path(path) if path.path.segments.last().is_some_and(|s| s.ident == name))
}

/// An item and what is implemented for it, wherever it stands.
fn entry(files: &[(PathBuf, syn::File)], room: &str, name: &str) -> String {
    let in_room = |path: &Path| {
        path.strip_prefix("src").is_ok_and(|p| p.starts_with(room) || p == Path::new(&format!("{room}.rs")))
    };
    let items = files.iter().filter(|(path, _)| in_room(path)).flat_map(|(_, file)| &file.items);
    let found: Vec<&Item> = items.filter(|item| name_of(item).as_deref() == Some(name)).collect();
    assert_eq!(found.len(), 1, "public items called {name} in {room}");
    let mut text = show(found[0]);
    // Another room may have a type of this name, too.
    let of_it = files.iter().filter(|(path, _)| in_room(path)).flat_map(|(_, file)| &file.items);
    let shown = of_it.filter_map(|item| match item {
        Item::Impl(item) if is_of(item, name) && !is_hidden(&item.attrs) => show_impl(item),
        _ => None,
    });
    text.extend(shown);
    text
}

#[test]
fn the_public_api_is_the_checked_in_one() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let (_, root) = files.iter().find(|(path, _)| path == Path::new("src/lib.rs")).unwrap();
    let mut names = Vec::new();
    for item in &root.items {
        if let Item::Use(item) = item
            && is_public(&item.vis)
        {
            leaves(&item.tree, "", &mut names);
        }
    }
    names.sort_by_key(|name| name.rsplit("::").next().map(str::to_string));
    assert!(names.len() <= MOST_NAMES, "{} names: {names:?}", names.len());
    let mut text =
        String::from("# What `schnell` shows to dependents with default features. Bodies are left out.\n");
    for name in &names {
        let (room, _) = name.split_once("::").unwrap();
        let name = name.rsplit("::").next().unwrap();
        write!(text, "\n{}", entry(&files, room, name)).unwrap();
    }
    text += "\n# schnell::image\n";
    let (_, image) = files.iter().find(|(path, _)| path == Path::new("src/image.rs")).unwrap();
    for name in image.items.iter().filter_map(name_of) {
        write!(text, "\n{}", entry(&files, "image", &name)).unwrap();
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(TABLE, &text).unwrap();
    }
    let table = std::fs::read_to_string(TABLE).unwrap_or_default();
    let differs = table.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(
        table == text,
        "the public API has changed, first at {differs:?}; if that is meant, run with BLESS=1 and look at {TABLE}"
    );
}
