//! Which module of a crate uses which other one, by the paths in its code.
//!
//! Code of tests is left out. A name that the root of a crate gives out again stands for the module that has
//! it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, UseTree};

use super::sources;

/// Where a module is, from the root of its crate: `["store", "shard"]`.
pub(crate) type Module = Vec<String>;

/// Pairs of modules, of which the first uses the second.
pub(crate) fn uses(source: &Path) -> BTreeSet<(Module, Module)> {
    let files: BTreeMap<Module, syn::File> = sources(source)
        .into_iter()
        .filter_map(|file| {
            let text = std::fs::read_to_string(&file).expect("a source");
            let parsed = syn::parse_file(&text).expect("a source that compiles");
            Some((module_of(file.strip_prefix(source).expect("it is in there"))?, parsed))
        })
        .collect();
    let modules: BTreeSet<&Module> = files.keys().collect();
    let given_out = files.get(&Module::new()).map(|root| given_out(root, &modules)).unwrap_or_default();
    let mut uses = BTreeSet::new();
    for (module, file) in files.iter().filter(|(module, _)| !module.is_empty()) {
        let mut paths = Paths { at: module.clone(), found: Vec::new() };
        paths.visit_file(file);
        let used = paths.found.iter().filter_map(|(at, path)| resolve(at, path, &modules, &given_out));
        uses.extend(used.map(|used| (module.clone(), used)).filter(|(module, used)| module != used));
    }
    uses
}

/// The module that a file has; `None` for tests, programs beside the crate, and generated code.
fn module_of(file: &Path) -> Option<Module> {
    let mut parts: Module =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_other =
        |part: &String| ["generated", "bin", "main"].contains(&&**part) || part.starts_with("tests");
    if parts.iter().any(is_other) {
        return None;
    }
    if parts == ["lib"] || parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    Some(parts)
}

/// The names that the root of a crate gives out of its modules.
fn given_out(root: &syn::File, modules: &BTreeSet<&Module>) -> BTreeMap<String, Module> {
    let mut names = BTreeMap::new();
    for item in &root.items {
        let Item::Use(item) = item else { continue };
        for (path, name) in flat(&item.tree) {
            if let Some(module) = resolve(&Module::new(), &path, modules, &BTreeMap::new()) {
                names.insert(name, module);
            }
        }
    }
    names
}

/// The module that a path leads into; `None` where that is not one of the crate.
fn resolve(
    at: &Module,
    path: &[String],
    modules: &BTreeSet<&Module>,
    given_out: &BTreeMap<String, Module>,
) -> Option<Module> {
    let mut rest = path;
    let mut module = match path.first()?.as_str() {
        "crate" => Module::new(),
        "self" | "super" => at.clone(),
        child => {
            let mut module = at.clone();
            module.push(child.to_owned());
            modules.contains(&module).then(|| at.clone())?
        }
    };
    while let Some((first, others)) = rest.split_first() {
        match first.as_str() {
            "crate" | "self" => {}
            "super" => _ = module.pop(),
            name => {
                module.push(name.to_owned());
                if !modules.contains(&module) {
                    module.pop();
                    let is_root = module.is_empty();
                    return if is_root { given_out.get(name).cloned() } else { Some(module) };
                }
            }
        }
        rest = others;
    }
    (!module.is_empty()).then_some(module)
}

/// Each path of a `use`, and the name that it gives.
fn flat(tree: &UseTree) -> Vec<(Module, String)> {
    let before = |name: String, paths: Vec<(Module, String)>| {
        let longer = move |(path, given): (Module, String)| ([vec![name.clone()], path].concat(), given);
        paths.into_iter().map(longer).collect()
    };
    match tree {
        UseTree::Path(path) => before(plain(&path.ident), flat(&path.tree)),
        UseTree::Group(group) => group.items.iter().flat_map(flat).collect(),
        UseTree::Name(name) => vec![(vec![plain(&name.ident)], plain(&name.ident))],
        UseTree::Rename(name) => vec![(vec![plain(&name.ident)], plain(&name.rename))],
        UseTree::Glob(_) => vec![(Vec::new(), String::new())],
    }
}

fn plain(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

/// The paths in a file's code, and the module in which each stands.
struct Paths {
    at: Module,
    found: Vec<(Module, Module)>,
}

impl Paths {
    fn add(&mut self, path: Module) {
        self.found.push((self.at.clone(), path));
    }

    /// Paths in a macro's arguments, which are code only for the macro.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path = Module::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end(&mut path);
                    }
                    path.push(plain(&ident));
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    self.scan(group.stream());
                }
                _ => self.end(&mut path),
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Module) {
        let path = std::mem::take(path);
        if path.len() > 1 {
            self.add(path);
        }
    }
}

impl Visit<'_> for Paths {
    fn visit_item(&mut self, item: &Item) {
        let attributes: &[Attribute] = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => &[],
        };
        if !attributes.iter().any(is_of_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &ItemMod) {
        self.at.push(plain(&item.ident));
        visit::visit_item_mod(self, item);
        self.at.pop();
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        for (path, _) in flat(&item.tree) {
            self.add(path);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.segments.len() > 1 {
            self.add(path.segments.iter().map(|segment| plain(&segment.ident)).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &Macro) {
        self.scan(item.tokens.clone());
    }
}

/// `#[cfg(test)]`, or what else is there in tests alone.
fn is_of_tests(attribute: &Attribute) -> bool {
    let is_test = |meta: &syn::MetaList| meta.tokens.to_string().split(", ").next() == Some("test");
    attribute.path().is_ident("cfg") && attribute.meta.require_list().is_ok_and(is_test)
}
