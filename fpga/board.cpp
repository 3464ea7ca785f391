// A simulated board behind a TCP socket: bytes of the connection are the bytes of the link.
//
// Usage: board LISTENING_SOCKET. Ends when standard input does. One connection at a time; the board
// keeps its state between two of them. Cycles pass while bytes come and go, and for IDLE_CYCLES
// after them, so that a host that asks nothing costs nothing.

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>

#include "Vboard.h"
#include "verilated.h"

namespace {

constexpr uint64_t IDLE_CYCLES = 200'000;
constexpr int CYCLES = 256;  // between two looks at the socket
constexpr int RESET_CYCLES = 16;

class Board {
   public:
    Board() : context_(new VerilatedContext), top_(new Vboard(context_.get())) {
        top_->rst = 1;
        for (int i = 0; i < RESET_CYCLES; i++) cycle();
        top_->rst = 0;
    }

    // Run some cycles; returns whether a byte has moved.
    bool run(int cycles) {
        bool moved = false;
        for (int i = 0; i < cycles; i++) moved |= cycle();
        return moved;
    }

    std::deque<uint8_t> to_board;
    std::string to_host;

   private:
    bool cycle() {
        top_->rx_valid = !to_board.empty();
        if (top_->rx_valid) top_->rx_data = to_board.front();
        top_->tx_ready = 1;
        // Neither valid nor ready depends on an input in the same cycle.
        const bool received = top_->rx_valid && top_->rx_ready && !top_->rst;
        const bool sent = top_->tx_valid && !top_->rst;
        if (received) to_board.pop_front();
        if (sent) to_host.push_back(static_cast<char>(top_->tx_data));
        top_->clk = 1;
        top_->eval();
        top_->clk = 0;
        top_->eval();
        return received || sent;
    }

    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vboard> top_;
};

class Server {
   public:
    explicit Server(int listening) : listening_(listening) {}

    void serve() {
        while (look()) {
            quiet_ = board_.run(CYCLES) ? 0 : quiet_ + CYCLES;
            flush();
        }
    }

   private:
    // Take what has arrived, and wait for something when the board is idle; false at the end.
    bool look() {
        const bool idle = quiet_ >= IDLE_CYCLES && board_.to_host.empty();
        pollfd files[2] = {
            {STDIN_FILENO, POLLIN, 0},
            {connection_ < 0 ? listening_ : connection_, POLLIN, 0},
        };
        if (poll(files, 2, idle ? -1 : 0) < 0) return errno == EINTR;
        if (files[0].revents) {
            char byte;
            if (read(STDIN_FILENO, &byte, 1) <= 0) return false;
        }
        if (!files[1].revents) return true;
        quiet_ = 0;
        if (connection_ < 0) {
            connection_ = accept(listening_, nullptr, nullptr);
            if (connection_ < 0) return true;
            const int on = 1;
            setsockopt(connection_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            fcntl(connection_, F_SETFL, O_NONBLOCK);
            return true;
        }
        uint8_t bytes[4096];
        const ssize_t count = recv(connection_, bytes, sizeof bytes, 0);
        if (count > 0) {
            board_.to_board.insert(board_.to_board.end(), bytes, bytes + count);
        } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
            disconnect();
        }
        return true;
    }

    void flush() {
        // Without a listener, what the board says is lost, as on a wire.
        if (connection_ < 0) board_.to_host.clear();
        if (board_.to_host.empty()) return;
        const auto& bytes = board_.to_host;
        const ssize_t count = send(connection_, bytes.data(), bytes.size(), 0);
        if (count > 0) {
            board_.to_host.erase(0, count);
        } else if (errno != EAGAIN && errno != EINTR) {
            disconnect();
        }
    }

    void disconnect() {
        close(connection_);
        connection_ = -1;
    }

    int listening_;
    int connection_ = -1;
    uint64_t quiet_ = 0;  // cycles without a byte
    Board board_;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::signal(SIGPIPE, SIG_IGN);
    Server(std::atoi(argv[1])).serve();
    // Verilator's model needs no orderly end, which takes a while for its memories.
    std::_Exit(0);
}
