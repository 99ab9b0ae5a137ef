// gloo.h: the declarations of Gloo that c10d's ProcessGroupGloo.hpp needs. libtorch contains Gloo
// but not its headers. Nothing here is called or constructed; only pointers to these classes are
// passed.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
public:
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace rendezvous {
class Store {
public:
  virtual ~Store();
  virtual void set(const std::string &key, const std::vector<char> &value) = 0;
  virtual std::vector<char> get(const std::string &key) = 0;
  virtual void wait(const std::vector<std::string> &keys) = 0;
  virtual void wait(const std::vector<std::string> &keys,
                    const std::chrono::milliseconds &timeout) = 0;
};
} // namespace rendezvous

namespace transport {
class Device {
public:
  virtual ~Device();
};
class UnboundBuffer {
public:
  virtual ~UnboundBuffer();
};
} // namespace transport

} // namespace gloo
