// The parser of PTX text: tokens.cpp, parser.cpp (modules), body.cpp (functions), operands.cpp, decode.cpp.
#pragma once
#include "machine.h"

namespace ptx {

struct Token {
  std::string text;
  int line;
};
std::vector<Token> tokens_of(const std::string& text);

struct Parser {
  std::vector<Token> tokens;
  size_t at = 0;
  Module& module;
  std::string module_name;
  std::shared_ptr<std::vector<std::string>> lines = std::make_shared<std::vector<std::string>>();
  std::shared_ptr<std::map<int, std::string>> files = std::make_shared<std::map<int, std::string>>();
  std::map<std::string, uint64_t> globals;  // their addresses

  // Static shared memory of the module, and of a function behind it: where variables are, which byte is whose. A
  // function has the variables that it uses.
  struct SharedMemory {
    std::map<std::string, int64_t> offsets;  // DYNAMIC: behind the static
    std::map<std::string, int> unused;       // the sizes of static variables that the function has not used yet
    std::vector<uint8_t> in_variable;
    int used = 0;
  } shared;
  static constexpr int64_t DYNAMIC = -1;

  Parser(Module& m, const std::string& text, const char* name);
  void parse_module();

 private:
  // .align n .b8 name[n] = {...}
  struct Variable {
    std::string name;
    int align = 1, element = 1;
    int64_t size = 0;
    bool dynamic = false;
    std::vector<uint8_t> value;
  };
  struct Register {
    int row, bits;
  };

  [[noreturn]] void bad(const std::string& what) const;
  const std::string& peek() const;
  std::string next();
  bool accept(const char* text);
  void expect(const char* text);
  void skip_line(int line);
  void skip_to(const char* text);
  int64_t integer();

  Variable variable();
  void declare_shared(const Variable& v);
  void declare_global(const Variable& v);
  Parameter parameter();
  std::vector<Parameter> parameters();
  void section();
  void parse_file();

  void parse_function(bool entry);
  void directives();
  void lay_out_parameters();
  void parse_body();
  bool parse_declaration(const std::string& word);
  void declare_registers();
  void parse_statement();
  Register* find_register(const std::string& name);
  Operand operand();
  Operand list(const char* end);
  Operand address();
  Operand number(bool negative, const std::string& text);

  void resolve(Operand& o);
  void resolve_special(Operand& o);
  void place_dynamic(Operand& o) const;
  void finish();
  void decode(const Statement& s, Instruction& i);
  void decode_call(const Statement& s, Instruction& i);
  void add(const Instruction& i);
  int call_parameter(const std::string& name, int statement) const;

  Function* f = nullptr;
  std::unique_ptr<Rows> rows;
  std::vector<std::map<std::string, Register>> scopes;
  std::vector<std::map<std::string, int>> scoped_parameters;  // .param of a body: their rows
  struct CallParameter {
    std::string name;
    int statement, row;  // from which statement on it is declared
  };
  std::vector<CallParameter> call_parameters;
  std::map<std::string, int> labels, locals;
  std::vector<Statement> statements;
  int file = 0, source_line = 0;
};

}  // namespace ptx
