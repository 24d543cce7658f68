//! What each kernel takes of an SM, per architecture: `docs/resources.tsv` is what ptxas reported when it was last
//! looked at. A spill, stack memory or too much shared memory fails; so does any change, until `BLESS=1` writes the
//! file anew for a reviewer to see. Another nvcc allots other registers, so its numbers are not compared.

use schnell::kernels;

/// Built by build.rs: one line per entry and architecture.
const PTXAS: &str = include_str!(concat!(env!("OUT_DIR"), "/ptxas.tsv"));
const COMMITTED: &str = "docs/resources.tsv";
const HEADER: &str = "entry\tarch\tregisters\tstatic_smem_bytes\tdynamic_smem_bytes\tthreads\tctas_per_sm";

/// CUDA programming guide, "Technical Specifications per Compute Capability".
struct Sm {
    smem_bytes: u32,
    smem_per_cta_bytes: u32,
    threads: u32,
    ctas: u32,
}

fn sm(arch: &str) -> Sm {
    let (smem_kib, threads, ctas) = match arch {
        "80" => (164, 2048, 32),
        "86" => (100, 1536, 16),
        "89" => (100, 1536, 24),
        "90" | "90a" => (228, 2048, 32),
        "120" => (100, 1536, 24),
        other => panic!("no limits are written down for sm_{other}"),
    };
    // The system keeps 1 KiB per CTA.
    Sm { smem_bytes: smem_kib << 10, smem_per_cta_bytes: (smem_kib - 1) << 10, threads, ctas }
}

/// CTAs that fit an SM of 64 Ki registers, which go to warps in units of 256.
fn ctas_per_sm(arch: &str, registers: u32, smem_bytes: u32, threads: u32) -> u32 {
    let sm = sm(arch);
    let warps = threads.div_ceil(32);
    let warps_by_registers = (64 << 10) / (registers * 32).next_multiple_of(256);
    // The four sub-cores have a quarter of the registers each.
    let by_registers = warps_by_registers / 4 * 4 / warps;
    let by_smem = sm.smem_bytes / (smem_bytes + 1024).next_multiple_of(128);
    by_registers.min(by_smem).min(sm.threads / threads).min(sm.ctas)
}

#[test]
#[cfg_attr(not(schnell_nvcc), ignore = "needs nvcc: scripts/get-nvcc")]
fn kernels_take_what_was_last_reviewed_and_never_spill() {
    let mut table = vec![concat!("# nvcc ", env!("SCHNELL_NVCC_VERSION")).to_string(), HEADER.to_string()];
    let mut faults = Vec::new();
    for kernel in kernels::all() {
        let num_before = table.len();
        for line in PTXAS.lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [stem, entry, arch, ref numbers @ ..] = fields[..] else { panic!("a short line: {line}") };
            if entry != kernel.name() {
                continue;
            }
            assert_eq!(stem, kernel.stem(), "{entry} is declared with another file's image");
            let numbers: Vec<u32> = numbers.iter().map(|n| n.parse().unwrap()).collect();
            let [registers, static_smem, stack, spill_stores, spill_loads] = numbers[..] else {
                panic!("a short line: {line}")
            };
            if stack + spill_stores + spill_loads != 0 {
                faults.push(format!(
                    "{entry} on sm_{arch}: {stack} bytes of stack, {spill_stores} of spill stores, {spill_loads} of spill loads"
                ));
            }
            let smem_bytes = kernel.smem_bytes() + static_smem;
            let allowed = sm(arch).smem_per_cta_bytes;
            if smem_bytes > allowed {
                faults.push(format!("{entry}: {smem_bytes} bytes of shared memory, sm_{arch} has {allowed}"));
            }
            let ctas = ctas_per_sm(arch, registers, smem_bytes, kernel.threads());
            if ctas == 0 {
                faults.push(format!("{entry}: no CTA fits an SM of sm_{arch}"));
            }
            table.push(format!(
                "{entry}\t{arch}\t{registers}\t{static_smem}\t{}\t{}\t{ctas}",
                kernel.smem_bytes(),
                kernel.threads()
            ));
        }
        assert!(
            table.len() > num_before,
            "ptxas has seen no entry {} in kernels/{}.cu",
            kernel.name(),
            kernel.stem()
        );
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    let table = table.join("\n") + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all("docs").unwrap();
        std::fs::write(COMMITTED, &table).unwrap();
    }
    let committed = std::fs::read_to_string(COMMITTED).unwrap_or_default();
    if committed.lines().next() != table.lines().next() {
        println!(
            "not compared: this build has {:?}, the file {:?}",
            table.lines().next(),
            committed.lines().next()
        );
        return;
    }
    for (now, reviewed) in table.lines().zip(committed.lines()) {
        assert_eq!(now, reviewed, "`BLESS=1 cargo test --test resources` accepts it");
    }
    assert_eq!(table.lines().count(), committed.lines().count(), "{COMMITTED} is stale; BLESS=1 writes it");
}

/// A kernel that is compiled but not listed would escape the test above.
#[test]
#[cfg_attr(not(schnell_nvcc), ignore = "needs nvcc: scripts/get-nvcc")]
fn every_entry_is_listed() {
    for line in PTXAS.lines().skip(1) {
        let entry = line.split('\t').nth(1).unwrap();
        let listed = kernels::all().iter().any(|kernel| kernel.name() == entry);
        assert!(listed, "{entry} is missing in schnell::kernels::all()");
    }
}

#[test]
fn the_occupancy_rule_agrees_with_known_cases() {
    // Registers alone: 168 per thread allow 12 warps (5376 registers each), so 3 CTAs of 128 threads.
    assert_eq!(ctas_per_sm("80", 168, 0, 128), 3);
    assert_eq!(ctas_per_sm("80", 255, 0, 256), 1);
    // Shared memory alone: 164 KiB hold one CTA of 99 KiB and two of 81 KiB, each plus 1 KiB.
    assert_eq!(ctas_per_sm("80", 32, 99 << 10, 128), 1);
    assert_eq!(ctas_per_sm("80", 32, 81 << 10, 128), 2);
    assert_eq!(ctas_per_sm("86", 32, 99 << 10, 128), 1);
    // Threads and CTAs alone.
    assert_eq!(ctas_per_sm("86", 16, 0, 256), 6);
    assert_eq!(ctas_per_sm("86", 16, 0, 32), 16);
}
