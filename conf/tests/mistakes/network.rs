//! Mistakes in `[reactor]`, `[transport.tcp]`, `[[listener]]` and `[[referral]]`.

use super::{BASE, and, instead};

#[test]
fn reactor() {
    let reactor = |line: &str, fragments: &[&str]| {
        instead("cores = [0]", &format!("cores = [0]\n{line}"), fragments)
    };
    instead(
        "cores = [0]",
        "cores = [3]",
        &[
            "this process may not run on core 3",
            "the cores that it may use are 0-2",
        ],
    );
    instead(
        "cores = [0]",
        "cores = [0, 1]\nmemory = \"64MiB\"\narray_memory = \"40MiB\"",
        &[
            "40MiB for arrays leave too little for the cores",
            "expected at most 32MiB",
        ],
    );
    instead(
        "cores = [0]",
        "cores = [0, 1]\nmemory = \"16MiB\"",
        &["16MiB is too little memory for 2 cores", "at least 32MiB"],
    );
    reactor(
        "memory = \"3MiB\"",
        &[
            "`memory` is out of range",
            "expected a size from 16MiB to 1TiB",
        ],
    );
    reactor(
        "memory = \"33MiB\"",
        &["`memory` is no multiple of 2MiB", "the next is \"34MiB\""],
    );
    reactor(
        "memory = \"16GiB\"",
        &[
            "this machine does not have 16GiB of memory",
            "it has 8.0GiB",
        ],
    );
    reactor(
        "idle_sleep = \"1ns\"",
        &[
            "`idle_sleep` is out of range",
            "expected a time from 1us to 10s, or \"never\"",
        ],
    );
    reactor("idle_sleep = \"none\"", &["`none` is not a time span"]);
    reactor("idle_sleep = 200", &["`idle_sleep` cannot be a number"]);
}

#[test]
fn transport() {
    let tcp =
        |line: &str, fragments: &[&str]| and(&format!("[transport.tcp]\n{line}\n"), fragments);
    tcp(
        "max_transfer = \"384KiB\"",
        &["`max_transfer` is no power of two"],
    );
    tcp(
        "max_transfer = \"2MiB\"",
        &["expected a size from 4KiB to 1MiB"],
    );
    tcp("in_capsule = 100", &["`in_capsule` is no multiple of 512B"]);
    tcp(
        "in_capsule = \"32KiB\"",
        &["expected a size from 0B to 16KiB"],
    );
    tcp(
        "max_h2c_data = \"5000B\"",
        &["`max_h2c_data` is no multiple of 4KiB"],
    );
    tcp("queue_depth = 1", &["expected a number from 2 to 1024"]);
    tcp(
        "queue_depth = \"1024\"",
        &[
            "`queue_depth` cannot be a text",
            "write it without quotes: 1024",
        ],
    );
    tcp("io_queues = 129", &["expected a number from 1 to 128"]);
    tcp("max_connections = 0", &["expected a number from 1 to 1024"]);
    tcp(
        "data_digest = \"on\"",
        &[
            "`data_digest` cannot be `on`",
            "expected \"allow\", \"require\" or \"off\"",
        ],
    );
    tcp(
        "stall_timeout = \"30\"",
        &["did you mean \"30s\" (seconds)"],
    );
    tcp(
        "stall_timeout = \"1ms\"",
        &[
            "`stall_timeout` is out of range",
            "expected a time from 1s to 1h",
        ],
    );
}

#[test]
fn addresses() {
    let address = |text: &str, fragments: &[&str]| {
        instead("\"127.0.0.1:4420\"", &format!("\"{text}\""), fragments)
    };
    address(
        "127.0.0.1",
        &[
            "`127.0.0.1` is not an address with a port",
            "add the port: \"127.0.0.1:4420\"",
        ],
    );
    address("::1", &["add the port: \"[::1]:4420\""]);
    address("storage-1:4420", &["write an IP address and a port"]);
    address(
        "fe80::1:2:3:4:5:6:4420",
        &["put the IPv6 address in brackets: \"[fe80::1:2:3:4:5:6]:4420\""],
    );
    address("127.0.0.1:70000", &["a port is a number from 1 to 65535"]);
    address(
        ":4420",
        &["for all addresses write \"0.0.0.0:4420\" or \"[::]:4420\""],
    );
    address(
        "127.0.0.1:0",
        &["port 0 is no port that a host can connect to"],
    );
    address("224.0.0.1:4420", &["a multicast or broadcast address"]);
    address(
        "[::ffff:10.0.0.10]:4420",
        &["an IPv4 address in IPv6 form", "write \"10.0.0.10:4420\""],
    );
    address(
        "[fe80::1]:4420",
        &["a link-local address without its interface"],
    );
    address(
        "10.0.0.11:4420",
        &["this machine does not have the address 10.0.0.11"],
    );
}

#[test]
fn listeners() {
    let main = "name = \"main\"\naddress = \"127.0.0.1:4420\"";
    let with =
        |more: &str, fragments: &[&str]| instead(main, &format!("{main}\n{more}"), fragments);
    with(
        "transport = \"rdma\"",
        &[
            "the transport \"rdma\" is not there yet",
            "this version of corebay speaks \"tcp\" only",
        ],
    );
    with("transport = \"udp\"", &["`udp` is not a transport"]);
    with(
        "discovery = false\nsubsystems = false\n[[listener]]\naddress = \"[::]:4420\"",
        &["this listener serves nothing"],
    );
    with(
        "[[listener]]\nname = \"main\"\naddress = \"[::]:4420\"",
        &["there are two listeners named `main`", ":8:8"],
    );
    with(
        "[[listener]]\naddress = \"127.0.0.1:4420\"",
        &["there are two listeners on 127.0.0.1:4420", ":8:11"],
    );
    with(
        "[[listener]]\naddress = \"0.0.0.0:4420\"",
        &["the listeners on 127.0.0.1:4420 and 0.0.0.0:4420 overlap"],
    );
    with(
        "[[listener]]\naddress = \"[::]:4421\"\n[[listener]]\naddress = \"[::1]:4421\"",
        &["[::]:4421 and [::1]:4421 overlap"],
    );
    instead(
        main,
        "name = \"main\"",
        &["[[listener]] has no `address`", ":4:1"],
    );
    instead(
        "name = \"main\"",
        "name = \"main port\"",
        &["`main port` is not a name"],
    );
    instead(
        &BASE[BASE.find("[[listener]]").unwrap()..BASE.find("[[disk]]").unwrap()],
        "",
        &["there is no [[listener]]: no host could connect"],
    );
    with("subsystems = false", &["no listener serves this subsystem"]);
}

#[test]
fn referrals() {
    and("[[referral]]\n", &["[[referral]] has no `address`"]);
    and(
        "[[referral]]\naddress = \"0.0.0.0:8009\"\n",
        &["it needs the address of a machine"],
    );
    and(
        "[[referral]]\naddress = \"127.0.0.1:4420\"\n",
        &["a referral to this appliance itself", "it listens here"],
    );
    let twice = "[[referral]]\naddress = \"10.0.0.1:8009\"\n".repeat(2);
    and(&twice, &["there are two referrals to 10.0.0.1:8009"]);
    and(
        "[[referral]]\naddress = \"10.0.0.1:8009\"\nnqn = \"x\"\n",
        &["`x` is not an NQN"],
    );
}
