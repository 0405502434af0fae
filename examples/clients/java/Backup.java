// Change a setting, start a backup and watch it to its end: java Backup.java [SOCKET]. Java 17, no packages.

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.UUID;

public class Backup {
    static final Set<String> ENDED = Set.of("succeeded", "partial", "failed", "cancelled", "interrupted");

    /** The service's own answer. Decide by `code`; show message and `hint` to people. */
    static class Refused extends RuntimeException {
        final String code, hint;
        final boolean isTransient;

        Refused(Map<String, Object> data) {
            super((String) data.get("message"));
            code = (String) data.get("code");
            hint = (String) data.get("hint");
            isTransient = (Boolean) data.get("transient");
        }
    }

    /** One connection, for one thread. IOException says that it is lost: connect again then. */
    static class Service implements AutoCloseable {
        private final SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX);
        private final ByteBuffer buffer = ByteBuffer.allocate(65536).flip();
        private final ArrayDeque<Map<String, Object>> early = new ArrayDeque<>();
        private long number = 0;

        Service(String path) throws IOException {
            try {
                channel.connect(UnixDomainSocketAddress.of(path));
            } catch (IOException error) {
                channel.close();
                throw error;
            }
        }

        /** Return the result of a method. `params` are names and values in turn. */
        Map<String, Object> call(String method, Object... params) throws IOException {
            Map<String, Object> named = new LinkedHashMap<>();
            for (int at = 0; at < params.length; at += 2) named.put((String) params[at], params[at + 1]);
            long id = ++number;
            Map<String, Object> request = new LinkedHashMap<>();
            request.put("jsonrpc", "2.0");
            request.put("id", id);
            request.put("method", method);
            request.put("params", named);
            ByteBuffer line = ByteBuffer.wrap((Json.write(request) + "\n").getBytes(StandardCharsets.UTF_8));
            while (line.hasRemaining()) channel.write(line);
            while (true) {
                Map<String, Object> message = read();
                if ("event".equals(message.get("method"))) {
                    early.add(object(message.get("params"))); // events come between answers, too
                } else if (Objects.equals(message.get("id"), id)) {
                    if (message.containsKey("error")) throw new Refused(object(object(message.get("error")).get("data")));
                    return object(message.get("result"));
                }
            }
        }

        /** Wait for the next event, after `events.subscribe`. */
        Map<String, Object> event() throws IOException {
            while (early.isEmpty()) {
                Map<String, Object> message = read();
                if ("event".equals(message.get("method"))) early.add(object(message.get("params")));
            }
            return early.remove();
        }

        private Map<String, Object> read() throws IOException {
            ByteArrayOutputStream line = new ByteArrayOutputStream();
            while (true) {
                if (!buffer.hasRemaining()) {
                    buffer.clear();
                    if (channel.read(buffer) < 0) throw new IOException("the service closed the connection");
                    buffer.flip();
                }
                byte next = buffer.get();
                if (next == '\n') break;
                line.write(next);
            }
            Map<String, Object> message = object(new Json(line.toString(StandardCharsets.UTF_8)).value());
            if (message.containsKey("error") && message.get("id") == null) { // to no request: no event comes any more
                throw new IOException((String) object(message.get("error")).get("message"));
            }
            return message;
        }

        @Override
        public void close() throws IOException {
            channel.close();
        }
    }

    /** Start one backup, whatever happens to the connection, and return its job when it has ended. */
    static Map<String, Object> backup(String path) throws InterruptedException {
        String key = UUID.randomUUID().toString(); // the same for each try: however often it is asked, there is one job
        Long seen = null;
        Object boot = null;
        Map<String, Object> job = null;
        while (true) {
            try (Service service = new Service(path)) {
                Map<String, Object> told = service.call("events.subscribe", "since", seen);
                boolean gap = (Boolean) told.get("gap");
                boolean missed = gap || (boot != null && !boot.equals(told.get("boot_id")));
                boot = told.get("boot_id");
                if (seen == null || gap) seen = (Long) told.get("seq");
                if (job == null) {
                    job = service.call("backup.start", "idempotency_key", key);
                    System.out.println("job " + job.get("id"));
                }
                if (missed) { // events are lost, or the service was started anew
                    job = service.call("job.get", "id", job.get("id"));
                    if (ENDED.contains(job.get("state"))) return job;
                }
                while (true) {
                    Map<String, Object> event = service.event();
                    if (event.get("seq") != null) seen = (Long) event.get("seq");
                    if (!job.get("id").equals(event.get("job_id"))) continue;
                    Map<String, Object> data = object(event.get("data"));
                    if (event.get("type").equals("progress")) {
                        System.err.println(data.get("stage") + ": " + data.get("raw_bytes") + " bytes");
                        continue;
                    }
                    System.out.println(event.get("type"));
                    Object state = data.get("state");
                    if (state != null && ENDED.contains(state)) return data;
                }
            } catch (IOException error) {
                System.err.println("connection lost (" + error.getMessage() + ")");
                System.out.println("connecting again, for what came after event " + seen);
                Thread.sleep(1000);
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        String path = arguments.length > 0 ? arguments[0] : "/run/deviceon-backup/service.sock";
        try (Service service = new Service(path)) {
            Map<String, Object> info = service.call("system.info");
            Object notReady = info.get("not_ready");
            System.out.println(info.get("product") + ", backup service " + info.get("version") + ": "
                + (notReady == null ? "ready" : notReady));
            Map<String, Object> found = service.call("settings.get");
            if (((List<?>) found.get("fixed")).contains("retention")) {
                System.out.println("retention is fixed by the configuration file");
            } else {
                Map<String, Object> changed = service.call("settings.update",
                    "retention", Map.of("keep_last", 14), "idempotency_key", UUID.randomUUID().toString());
                Map<String, Object> retention = object(object(changed.get("settings")).get("retention"));
                System.out.println("archives that are kept: " + retention.get("keep_last"));
            }
            try {
                service.call("job.get", "id", "0000000000000000");
            } catch (Refused error) {
                System.out.println("refused: " + error.code + ": " + error.getMessage());
            }
        }
        Map<String, Object> job = backup(path);
        if (!job.get("state").equals("succeeded")) {
            Map<String, Object> error = object(job.get("error"));
            System.out.println(job.get("state") + ": " + error.get("code") + ": " + error.get("message") + " "
                + error.get("hint"));
            System.exit(1);
        }
        System.out.println("succeeded: " + object(job.get("result")).get("name"));
    }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Object value) {
        return (Map<String, Object>) value;
    }

    /** As much of JSON as this needs, for what the service sends. Use your own library in a larger program. */
    static class Json {
        private final String text;
        private int at = 0;

        Json(String text) {
            this.text = text;
        }

        /** Read Map, List, String, Long, Double, Boolean or null. */
        Object value() {
            switch (peek()) {
                case '{': {
                    Map<String, Object> members = new HashMap<>();
                    for (at++; peek() != '}'; skip(',')) {
                        String name = string();
                        skip(':');
                        members.put(name, value());
                    }
                    at++;
                    return members;
                }
                case '[': {
                    List<Object> items = new ArrayList<>();
                    for (at++; peek() != ']'; skip(',')) items.add(value());
                    at++;
                    return items;
                }
                case '"':
                    return string();
                default: {
                    int start = at;
                    while (at < text.length() && ",]} \t".indexOf(text.charAt(at)) < 0) at++;
                    String word = text.substring(start, at);
                    if (word.equals("null")) return null;
                    if (word.equals("true") || word.equals("false")) return word.equals("true");
                    if (word.matches("-?[0-9]+")) return Long.valueOf(word);
                    return Double.valueOf(word);
                }
            }
        }

        private String string() {
            StringBuilder read = new StringBuilder();
            peek();
            for (at++; text.charAt(at) != '"'; at++) {
                if (text.charAt(at) != '\\') {
                    read.append(text.charAt(at));
                    continue;
                }
                char escaped = text.charAt(++at);
                if (escaped == 'u') {
                    read.append((char) Integer.parseInt(text.substring(at + 1, at + 5), 16));
                    at += 4;
                } else {
                    int known = "bfnrt".indexOf(escaped);
                    read.append(known < 0 ? escaped : "\b\f\n\r\t".charAt(known));
                }
            }
            at++;
            return read.toString();
        }

        private char peek() {
            while (" \t".indexOf(text.charAt(at)) >= 0) at++;
            return text.charAt(at);
        }

        private void skip(char separator) {
            if (peek() == separator) at++;
        }

        static String write(Object value) {
            if (value instanceof Map<?, ?> map) {
                List<String> members = new ArrayList<>();
                map.forEach((name, member) -> members.add(write(name) + ":" + write(member)));
                return "{" + String.join(",", members) + "}";
            }
            if (value instanceof List<?> list) {
                return "[" + String.join(",", list.stream().map(Json::write).toList()) + "]";
            }
            if (!(value instanceof String text)) return String.valueOf(value); // numbers, true, false, null
            StringBuilder written = new StringBuilder("\"");
            for (char each : text.toCharArray()) {
                boolean plain = each >= ' ' && each != '"' && each != '\\';
                written.append(plain ? String.valueOf(each) : String.format("\\u%04x", (int) each));
            }
            return written.append('"').toString();
        }
    }
}
